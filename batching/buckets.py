"""Length buckets: which sequences attend together, and what padding them to one length costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from engines.types import ScheduledSequence

MAX_PADDING_WASTE = 0.10

_by_length = attrgetter("num_tokens", "start")


@dataclass(slots=True)
class Cells:
    """Query-key pairs that a step computes: those asked for, and those that padding adds."""

    real: int = 0
    padding: int = 0

    @property
    def waste(self) -> float:
        """Padding as a share of the real work."""
        return self.padding / self.real if self.real else 0.0


@dataclass(slots=True)
class LengthGroups:
    """A step's sequences, partitioned, and what all groups cost together."""

    groups: list[list[ScheduledSequence]] = field(default_factory=list)
    cells: Cells = field(default_factory=Cells)


def count_cells(group: Sequence[ScheduledSequence]) -> Cells:
    """The cost of one group: every member is padded to the most queries and the longest context among them."""
    real = sum(member.num_tokens * member.context_len for member in group)
    queries = max(member.num_tokens for member in group)
    context = max(member.context_len for member in group)
    return Cells(real, len(group) * queries * context - real)


def group_by_length(scheduled: Iterable[ScheduledSequence], max_waste: float = MAX_PADDING_WASTE) -> LengthGroups:
    """Partition a step so that over all groups padding stays within `max_waste` of the real work.

    One pass from the longest down. A group takes the next sequence while the waste of everything placed so far stays
    within bounds, so the slack that long sequences leave lets the cheap short ones share fewer, larger groups.
    Decodes never share a group with chunks: engines compute the two differently.
    """
    groups: list[list[ScheduledSequence]] = []
    real = closed = area = 0  # asked for so far; with padding: in all groups but the last, in the last
    queries = context = 0  # of the last group, padded
    for item in sorted(scheduled, key=_by_length, reverse=True):
        length = item.start + item.num_tokens
        real += item.num_tokens * length
        if groups and (queries == 1) == (item.num_tokens == 1):
            longest = max(context, length)
            grown = (len(groups[-1]) + 1) * queries * longest
            if closed + grown - real <= max_waste * real:
                groups[-1].append(item)
                area, context = grown, longest
                continue
        closed += area
        groups.append([item])
        queries, context, area = item.num_tokens, length, item.num_tokens * length
    return LengthGroups(groups, Cells(real, closed + area - real))
