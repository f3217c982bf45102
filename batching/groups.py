"""Requests that share a prompt: it is computed once, by the first of them, and the others find it in the cache."""

from __future__ import annotations

from collections.abc import Iterable

from batching.sequence import Sequence, SequenceStatus


class SharedPrompts:
    """Who computes what the others of its group wait for, in the queue.

    Nobody waits for one that has ended, or that has not started yet: whoever starts first leads. A leader that lost
    its blocks leads on, since it is started again before those that wait.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._leaders: dict[str, Sequence] = {}

    def may_start(self, sequence: Sequence) -> bool:
        return not self._leaders or sequence.request.group not in self._leaders

    def started(self, sequence: Sequence) -> None:
        """It leads if it computes what others could share."""
        group = sequence.request.group
        if group and not sequence.asks_of_prompt and sequence.num_computed_tokens < self._num_shareable(sequence):
            self._leaders.setdefault(group, sequence)

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """So many of its tokens can be shared by now."""
        if self._leaders and self._leads(sequence) and num_tokens >= self._num_shareable(sequence):
            del self._leaders[sequence.request.group]

    def ended(self, sequence: Sequence) -> None:
        if self._leads(sequence):
            del self._leaders[sequence.request.group]

    def _leads(self, sequence: Sequence) -> bool:
        return self._leaders.get(sequence.request.group) is sequence

    def _num_shareable(self, sequence: Sequence) -> int:
        """Full blocks of the prompt, without its last token: that one everybody computes."""
        return (sequence.num_prompt_tokens - 1) // self._block_size * self._block_size

    def check_integrity(self, running: Iterable[Sequence], preempted: Iterable[Sequence]) -> None:
        """Every leader will get on: it runs, or will be started again."""
        alive = {id(sequence) for sequence in (*running, *preempted)}
        for group, leader in self._leaders.items():
            assert leader.request.group == group
            assert leader.status in (SequenceStatus.RUNNING, SequenceStatus.PREEMPTED)
            assert id(leader) in alive, "others wait for one that has ended"
