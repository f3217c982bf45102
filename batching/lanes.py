"""The sequences that have begun, and the room that they have: places on the engine, and blocks of its memory.

The background (`batching.turns`) gives up its room to everybody else, and takes nobody's.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from batching.blocks import BlockPool
from batching.pace import MAX_PREFILLS
from batching.sequence import Sequence, SequenceStatus
from batching.sharing import gives_way
from engines.types import EngineInfo

# Left free for each running sequence when another one starts. Without, the newcomer would soon be preempted for them:
# with memory for half of what wants to run, 45 % more tokens were computed than needed, with 2 blocks 6 % (simulated).
HEADROOM_BLOCKS = 2
# Of so many places one sequence, at most, is set aside for another account.
PLACES_FOR_EACH_SET_ASIDE = 8
# An engine of so many sequences leaves one to the background, however many others wait for a place.
MIN_SEQS_TO_SHARE = 16


@dataclass(slots=True)
class Lane:
    """The sequences of one kind that have begun: those of the background, or all others."""

    is_background: bool
    running: list[Sequence] = field(default_factory=list)  # in order of admission
    preempted: list[Sequence] = field(default_factory=list)  # the most urgent first, of those the oldest

    @property
    def sequences(self) -> list[Sequence]:
        return self.running + self.preempted


class Lanes:
    """Both kinds on one engine. `newly_preempted`: ids that the engine has not been told of yet."""

    def __init__(self, info: EngineInfo) -> None:
        self.pool = BlockPool(info.num_blocks, info.block_size)
        self.foreground, self.background = Lane(is_background=False), Lane(is_background=True)
        self.newly_preempted: list[int] = []
        self.num_preemptions = 0
        self.max_num_seqs = info.max_num_seqs  # places; fewer while memory is short

    def of(self, sequence: Sequence) -> Lane:
        return self.background if sequence.request.is_background else self.foreground

    @property
    def num_kept(self) -> int:
        """Places that the background keeps while others wait for one."""
        return int(self.max_num_seqs >= MIN_SEQS_TO_SHARE)

    @property
    def num_running(self) -> int:
        return len(self.foreground.running) + len(self.background.running)

    @property
    def num_begun(self) -> int:
        return len(self.foreground.sequences) + len(self.background.sequences)

    # --- who starts, and who ends

    def start(self, sequence: Sequence) -> bool:
        """Give it a place and the blocks of all its known tokens, those of a cached prefix included, or leave
        everything as it is."""
        cached, needed = self._needs(sequence)
        if not self._make_way(sequence, needed, cached):
            return False
        self.pool.share(cached)
        sequence.block_table = cached + self.pool.allocate(needed)
        sequence.num_computed_tokens = len(cached) * self.pool.block_size
        lane = self.of(sequence)
        if sequence.status is SequenceStatus.PREEMPTED:
            lane.preempted.remove(sequence)
        sequence.status = SequenceStatus.RUNNING
        lane.running.append(sequence)
        return True

    def lacks_room(self, sequence: Sequence) -> bool:
        cached, needed = self._needs(sequence)
        return not (self._has_place() and self._has_memory(needed, cached))

    @property
    def may_set_aside(self) -> bool:
        """Whoever is, is the first to go on: so nobody is for long as long as they are few."""
        return (len(self.foreground.preempted) + 1) * PLACES_FOR_EACH_SET_ASIDE <= self.max_num_seqs

    def set_aside_for(self, newcomer: Sequence) -> None:
        """Preempt others until it fits, or nobody gives way any more (`batching.sharing`)."""
        while self.lacks_room(newcomer):
            _, needed = self._needs(newcomer)
            if (victim := gives_way(self.foreground.running, newcomer, needed)) is None:
                return
            self.preempt(victim)

    def _needs(self, sequence: Sequence) -> tuple[list[int], int]:
        """The cached blocks that it can share, and how many more its known tokens take."""
        cached = self.pool.find_cached(sequence.hashes(self.pool.block_size, sequence.max_cached_tokens()))
        num_known = len(sequence.token_ids) + sequence.num_pending_tokens
        return cached, self.pool.blocks_for(num_known) - len(cached)

    def end(self, sequence: Sequence) -> None:
        """One that has not begun is in no lane."""
        lane = self.of(sequence)
        if sequence.status is SequenceStatus.RUNNING:
            lane.running.remove(sequence)
            self._release_blocks(sequence)
        elif sequence.status is SequenceStatus.PREEMPTED:
            lane.preempted.remove(sequence)
        if sequence.sequence_id in self.newly_preempted:  # an engine need not look for what it drops anyway
            self.newly_preempted.remove(sequence.sequence_id)

    def _make_way(self, sequence: Sequence, needed: int, cached: list[int]) -> bool:
        """Whether it fits, once those in the background have given up what it needs: a place, or memory."""
        background = self.background.running
        while not (self._has_place() and self._has_memory(needed, cached)):
            num_kept = 0 if self._has_place() else self.num_kept
            if sequence.request.is_background or len(background) <= num_kept:
                return False
            self.preempt(_least_urgent(background))
        return True

    def _has_place(self) -> bool:
        return self.num_running < self.max_num_seqs

    def _has_memory(self, needed: int, cached: list[int]) -> bool:
        return self.pool.can_allocate(needed + HEADROOM_BLOCKS * self.num_running, cached)

    # --- room for those that run

    def make_room(self, sequence: Sequence, num_tokens: int, scheduled: Container[int]) -> bool:
        """Give it the blocks that so many tokens more need, taking them from later comers that this step, which has
        `scheduled` these ids, does not run yet."""
        if sequence.status is not SequenceStatus.RUNNING:  # it lost its own to another one in this very step
            return False
        needed = self.pool.blocks_for(sequence.num_computed_tokens + num_tokens) - len(sequence.block_table)
        if needed <= 0:
            return True
        while not self.pool.can_allocate(needed):
            victim = self._victim(sequence, scheduled)
            self.preempt(victim)
            if victim is sequence:
                return False
        sequence.block_table.extend(self.pool.allocate(needed))
        return True

    def _victim(self, sequence: Sequence, scheduled: Container[int]) -> Sequence:
        running = [] if sequence.request.is_background else self.foreground.running
        return _least_urgent([s for s in running + self.background.running if s.sequence_id not in scheduled])

    def preempt(self, sequence: Sequence) -> None:
        """Take all its room; what it computed is lost, what it sampled is not."""
        lane = self.of(sequence)
        lane.running.remove(sequence)
        self._release_blocks(sequence)
        sequence.status = SequenceStatus.PREEMPTED
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        lane.preempted.append(sequence)
        lane.preempted.sort(key=lambda s: (s.request.priority, s.sequence_id))
        self.newly_preempted.append(sequence.sequence_id)
        self.num_preemptions += 1

    def shrink(self, max_num_seqs: int, most_in_background: int) -> None:
        """Leave no more places than these."""
        self.max_num_seqs = max_num_seqs
        while len(self.background.running) > most_in_background:
            self.preempt(_least_urgent(self.background.running))
        while self.num_running > max_num_seqs:
            self.preempt(_least_urgent(self.foreground.running + self.background.running))

    def _release_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table = []  # a new list: steps in flight hold the old one

    def check_integrity(self) -> None:
        """Every sequence is in its own lane, and every block is accounted for."""
        lanes = (self.foreground, self.background)
        running = [sequence for lane in lanes for sequence in lane.running]
        assert len(running) <= self.max_num_seqs
        self.pool.check_integrity(s.block_table for s in running)
        for sequence in running:
            assert sequence.status is SequenceStatus.RUNNING
            assert len(sequence.block_table) >= self.pool.blocks_for(sequence.num_computed_tokens)
            assert sequence.num_uncomputed_tokens >= 0
        for lane in lanes:
            assert all(s.request.is_background == lane.is_background for s in lane.sequences)
            assert sum(s.num_uncomputed_tokens > 1 for s in lane.running) <= MAX_PREFILLS
            assert all(s.status is SequenceStatus.PREEMPTED for s in lane.preempted)
            assert not any(s.block_table or s.num_computed_tokens for s in lane.preempted)


def _least_urgent(running: list[Sequence]) -> Sequence:
    """Of several the latest admitted: it has lost the least."""
    return max(reversed(running), key=lambda s: s.request.priority)
