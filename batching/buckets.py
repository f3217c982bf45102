"""Length buckets: which sequences attend together, and what padding them to one length costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engines.types import ScheduledSequence

MAX_PADDING_WASTE = 0.10


@dataclass(slots=True)
class Cells:
    """Query-key pairs that a step computes: those asked for, and those that padding adds."""

    real: int = 0
    padding: int = 0

    def __add__(self, other: Cells) -> Cells:
        return Cells(self.real + other.real, self.padding + other.padding)

    @property
    def waste(self) -> float:
        """Padding as a share of the real work."""
        return self.padding / self.real if self.real else 0.0


def count_cells(group: Sequence[ScheduledSequence]) -> Cells:
    """The cost of one group: every member is padded to the most queries and the longest context among them."""
    real = sum(member.num_tokens * member.context_len for member in group)
    queries = max(member.num_tokens for member in group)
    context = max(member.context_len for member in group)
    return Cells(real, len(group) * queries * context - real)


def group_by_length(
    scheduled: Iterable[ScheduledSequence], max_waste: float = MAX_PADDING_WASTE
) -> list[list[ScheduledSequence]]:
    """Partition a step so that over all groups padding stays within `max_waste` of the real work.

    One pass from the longest down. A group takes the next sequence while the waste of everything placed so far stays
    within bounds, so the slack that long sequences leave lets the cheap short ones share fewer, larger groups.
    """
    groups: list[list[ScheduledSequence]] = []
    closed = Cells()
    group_cells = Cells()
    for item in sorted(scheduled, key=lambda s: (s.num_tokens, s.context_len), reverse=True):
        grown = _grow(groups[-1], group_cells, item) if groups else None
        if grown is not None and (closed + grown).waste <= max_waste:
            groups[-1].append(item)
            group_cells = grown
        else:
            closed += group_cells
            groups.append([item])
            group_cells = Cells(item.num_tokens * item.context_len)
    return groups


def _grow(group: list[ScheduledSequence], cells: Cells, item: ScheduledSequence) -> Cells:
    """The group's cost with one more member, without walking the group again.

    The first member has the most queries (the order of the pass); the padded context follows from the area.
    """
    queries = group[0].num_tokens
    context = (cells.real + cells.padding) // (len(group) * queries)
    real = cells.real + item.num_tokens * item.context_len
    padded = (len(group) + 1) * queries * max(context, item.context_len)
    return Cells(real, padded - real)
