"""Where on the device a sequence's state is: its block table, its last token, its counts. Integers only."""

from __future__ import annotations

from collections.abc import Collection


class SlotTable:
    """Gives each sequence one slot of a fixed number. A slot is kept until it is released, or until it is needed for
    another and its sequence may lose it."""

    def __init__(self, num_slots: int) -> None:
        self._slots: dict[int, int] = {}  # by sequence id, the one longest without use first
        self._free = list(range(num_slots))[::-1]
        self._num_slots = num_slots

    def get(self, sequence_id: int) -> int | None:
        return self._slots.get(sequence_id)

    def touch(self, sequence_id: int) -> None:
        self._slots[sequence_id] = self._slots.pop(sequence_id)

    def acquire(self, sequence_id: int, keep: Collection[int]) -> int:
        """A slot for a sequence without one: a free one, or that of the sequence longest without use that is not among
        `keep`."""
        assert sequence_id not in self._slots
        if not self._free:
            victim = next(other for other in self._slots if other not in keep)
            self.release(victim)
        slot = self._slots[sequence_id] = self._free.pop()
        return slot

    def release(self, sequence_id: int) -> None:
        if (slot := self._slots.pop(sequence_id, None)) is not None:
            self._free.append(slot)

    def check_integrity(self) -> None:
        """Every slot is free or belongs to one sequence."""
        assert sorted([*self._free, *self._slots.values()]) == list(range(self._num_slots))
