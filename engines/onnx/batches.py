"""The plan's groups as the batches that the graph runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from engines.onnx.probe import Abilities
from engines.steps import ScheduledSequence

Batch = list[ScheduledSequence]


@dataclass(slots=True, frozen=True)
class BatchRules:
    """`free_padding`: tokens of padded cache that cost less than another run, which reads all weights again."""

    abilities: Abilities
    is_merged: bool  # the decoder: a branch with, and one without a cache
    free_padding: int

    def split(self, groups: list[Batch]) -> list[Batch]:
        """In the order they must run in."""
        parts = [part for group in groups for part in self._parts(group)]
        if self.abilities.pads:
            decodes = [part for part in parts if _is_decode(part[0])]
            parts = self._join(decodes) + [part for part in parts if not _is_decode(part[0])]
        if self.abilities.continues_in_chunks:
            return parts
        return [batch for part in parts for batch in _token_by_token(part)]

    def _parts(self, group: Batch) -> list[Batch]:
        """Sequences that the graph can run together."""
        parts: dict[tuple[int, int], Batch] = {}
        for sequence in group:
            parts.setdefault(self._shape(sequence), []).append(sequence)
        return list(parts.values())

    def _shape(self, sequence: ScheduledSequence) -> tuple[int, int]:
        """What the members of a batch have in common. A decode padded to a chunk would cost a chunk's queries."""
        if not self.abilities.pads:
            return sequence.start, sequence.num_tokens
        return _is_decode(sequence), self.is_merged and sequence.start > 0

    def _join(self, decodes: list[Batch]) -> list[Batch]:
        """Length groups of decodes, the longest first, in one batch while that pays."""
        joined: list[Batch] = []
        for group in sorted(decodes, key=_width, reverse=True):
            if joined and sum(_width(joined[-1]) - sequence.start for sequence in group) <= self.free_padding:
                joined[-1] = joined[-1] + group
            else:
                joined.append(group)
        return joined


def _is_decode(sequence: ScheduledSequence) -> bool:
    return sequence.num_tokens == 1 and sequence.start > 0


def _width(batch: Batch) -> int:
    return max(sequence.start for sequence in batch)


def _token_by_token(part: Batch) -> Iterator[Batch]:
    """For a graph that takes one token behind a cache; without one it takes many."""
    if fresh := [sequence for sequence in part if sequence.start == 0]:
        yield fresh
    for sequence in (sequence for sequence in part if sequence.start > 0):
        last = sequence.num_tokens - 1
        for i in range(sequence.num_tokens):
            yield [replace(sequence, start=sequence.start + i, num_tokens=1, samples=sequence.samples and i == last)]
