"""Length buckets: which sequences attend together, and what padding them to one length costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from engines.steps import ScheduledSequence

MAX_PADDING_WASTE = 0.10

_by_length = attrgetter("num_tokens", "start")


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


@dataclass(slots=True)
class LengthGroups:
    """A step's sequences, partitioned, and what all groups cost together; `ungrouped`: what one group of all its chunks
    and one of all its decodes would."""

    groups: list[list[ScheduledSequence]] = field(default_factory=list)
    cells: Cells = field(default_factory=Cells)
    ungrouped: Cells = field(default_factory=Cells)


def count_cells(group: Sequence[ScheduledSequence]) -> Cells:
    """The cost of one group: every member is padded to the most queries and the longest context among them."""
    real = sum(member.num_tokens * member.context_len for member in group)
    queries = max(member.num_tokens for member in group)
    context = max(member.context_len for member in group)
    return Cells(real, len(group) * queries * context - real)


def group_by_length(scheduled: Iterable[ScheduledSequence], max_waste: float = MAX_PADDING_WASTE) -> LengthGroups:
    """Partition a step so that over all groups padding stays within `max_waste` of the real work.

    Decodes never share a group with chunks: engines compute the two differently.
    """
    rows = sorted(scheduled, key=_by_length, reverse=True)
    first_decode = next((index for index, row in enumerate(rows) if row.num_tokens == 1), len(rows))
    chunks = _partition(rows[:first_decode], max_waste)
    decodes = _partition(rows[first_decode:], max_waste)
    return LengthGroups(
        chunks.groups + decodes.groups, chunks.cells + decodes.cells, chunks.ungrouped + decodes.ungrouped
    )


def _partition(rows: list[ScheduledSequence], max_waste: float) -> LengthGroups:
    """One pass from the longest down: a group takes the next row while the padding of all placed so far stays within
    their share of what is allowed. The shares are equal, not proportional: so the short, whose padding is cheap, come
    into few groups too.
    """
    cells = [row.num_tokens * (row.start + row.num_tokens) for row in rows]
    share = max_waste * sum(cells) / max(1, len(cells))
    groups: list[list[ScheduledSequence]] = []
    real = closed = area = 0  # asked for so far; with padding: in all groups but the last, in the last
    queries = context = longest_of_all = 0  # the first two of the last group, padded
    for placed, (row, its_cells) in enumerate(zip(rows, cells, strict=True), start=1):
        real += its_cells
        longest = max(context, row.start + row.num_tokens)
        grown = (len(groups[-1]) + 1) * queries * longest if groups else 0
        if groups and closed + grown - real <= placed * share:
            groups[-1].append(row)
            area, context = grown, longest
        else:
            closed += area
            groups.append([row])
            queries, context, area = row.num_tokens, row.start + row.num_tokens, its_cells
        longest_of_all = max(longest_of_all, context)
    in_one = len(rows) * rows[0].num_tokens * longest_of_all if rows else 0
    return LengthGroups(groups, Cells(real, closed + area - real), Cells(real, in_one - real))


def fill_batch(first: int, lengths: Sequence[int], size: int, max_waste: float = MAX_PADDING_WASTE) -> list[int]:
    """Which prompts to run in one batch with `lengths[first]`, for engines that pad a batch to its longest: indices,
    `first` before all others, then the nearest in length, of those the earliest.

    Padding stays within `max_waste` of the batch's real tokens.
    """
    others = [index for index in range(len(lengths)) if index != first]
    batch, real, longest = [first], lengths[first], lengths[first]
    for index in sorted(others, key=lambda i: abs(lengths[i] - lengths[first])):
        grown, total = max(longest, lengths[index]), real + lengths[index]
        if len(batch) == size:
            break
        if grown * (len(batch) + 1) <= (1 + max_waste) * total:
            batch.append(index)
            real, longest = total, grown
    return batch
