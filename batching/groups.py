"""Requests that share a prompt: it is computed once, by the first of them, and the others find it in the cache."""

from __future__ import annotations

from dataclasses import dataclass

from batching.sequence import Sequence, SequenceStatus

_ALIVE = (SequenceStatus.RUNNING, SequenceStatus.PREEMPTED)


@dataclass(slots=True)
class _Group:
    """`leader` computes what the others wait for, in the queue. `num_members`: of those that have not ended."""

    num_members: int = 0
    has_begun: bool = False
    leader: Sequence | None = None


class SharedPrompts:
    """Who may start, and who waits for a prompt.

    Nobody waits for one that has ended, or that has not started yet: whoever starts first leads. A leader that lost
    its blocks leads on, since it is started again before those that wait.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._groups: dict[str, _Group] = {}

    def added(self, sequence: Sequence) -> None:
        if name := sequence.request.group:
            self._groups.setdefault(name, _Group()).num_members += 1

    def may_start(self, sequence: Sequence) -> bool:
        group = self._of(sequence)
        return group is None or group.leader is None

    def has_begun(self, sequence: Sequence) -> bool:
        """Others of its group have started: the request as a whole waits for no place any more."""
        group = self._of(sequence)
        return group is not None and group.has_begun

    def started(self, sequence: Sequence) -> None:
        """It leads if it computes what others could share."""
        if (group := self._of(sequence)) is None:
            return
        group.has_begun = True
        if not sequence.asks_of_prompt and sequence.num_computed_tokens < self._num_shareable(sequence):
            group.leader = sequence

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """So many of its tokens can be shared by now."""
        group = self._of(sequence)
        if group is not None and group.leader is sequence and num_tokens >= self._num_shareable(sequence):
            group.leader = None

    def ended(self, sequence: Sequence) -> None:
        if (group := self._of(sequence)) is None:
            return
        if group.leader is sequence:
            group.leader = None
        group.num_members -= 1
        if not group.num_members:
            del self._groups[sequence.request.group]

    def _of(self, sequence: Sequence) -> _Group | None:
        return self._groups.get(sequence.request.group) if sequence.request.group else None

    def _num_shareable(self, sequence: Sequence) -> int:
        """Full blocks of the prompt, without its last token: that one everybody computes."""
        return (sequence.num_prompt_tokens - 1) // self._block_size * self._block_size

    def check_integrity(self, live: list[Sequence]) -> None:
        """`live`: all that have not ended. Every leader will get on: it runs, or will be started again."""
        names = [sequence.request.group for sequence in live if sequence.request.group]
        assert {name: names.count(name) for name in names} == {n: g.num_members for n, g in self._groups.items()}
        for name, group in self._groups.items():
            if group.leader is not None:
                assert group.leader.request.group == name
                assert group.leader in live, "others wait for one that has ended"
                assert group.leader.status in _ALIVE
