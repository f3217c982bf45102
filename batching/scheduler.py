"""Iteration-level scheduling: what every step computes. Pure: no torch, no I/O, the time comes in as `now`.

There is one kind of work: a sequence's computed tokens catch up with its known tokens. A decode is a sequence that
is one token behind, a prefill one that is many behind, and a chunk is as much of that as goes into the step: decodes
go first, and what joins them is bounded by the step's token budget and by the running streams' pace (`batching.pace`),
so that they keep it while a long prompt is worked off (Sarathi-Serve, arXiv:2403.02310).

Work in the background has lanes and steps of its own (`batching.turns`), and gives up its room to everybody else.

A step may be planned before the one before it has been answered: `Sequence` counts what is on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from batching.buckets import MAX_PADDING_WASTE, group_by_length
from batching.groups import SharedPrompts
from batching.lanes import Lane, Lanes
from batching.pace import MAX_PREFILLS, MAX_SLOWDOWN, Pace, StepLoad, share_out
from batching.queue import AdmissionQueue
from batching.refusals import check_request, overloaded, too_large, waited_in_vain
from batching.sequence import Sequence, SequenceStatus
from batching.sharing import has_most
from batching.stats import WorkerStats
from batching.step_limit import StepLimit
from batching.turns import Turn, TurnTaking, background_tokens
from engines.steps import NewSequence, ScheduledSequence, StepPlan, StepResult
from engines.types import EngineInfo, FinishReason, GenerationRequest, OutputDelta, RequestError, TokenLogprobs


@dataclass(slots=True, frozen=True)
class SchedulerConfig:
    max_queue: int = 1024
    queue_timeout: float = 10.0  # seconds
    max_padding_waste: float = MAX_PADDING_WASTE
    max_slowdown: float = MAX_SLOWDOWN  # of running streams, by others' prompts


class Scheduler:
    """Owns every sequence from `add` to its last delta."""

    def __init__(self, info: EngineInfo, config: SchedulerConfig) -> None:
        self.info = info
        self.config = config
        self.queue: AdmissionQueue[Sequence] = AdmissionQueue(config.max_queue, config.queue_timeout)
        self.lanes = Lanes(info)
        self.pool = self.lanes.pool
        self._prompts = SharedPrompts(info.block_size)
        self.stats = WorkerStats(kv_blocks=info.num_blocks)
        self.max_model_len = min(info.max_model_len, info.num_blocks * info.block_size)
        # With less, sequences that decode could be left out of a step for as long as others run.
        self._limit = StepLimit(info.max_num_seqs, max(info.token_budget, info.max_num_seqs))
        self._pace = Pace(info.block_size, config.max_slowdown)
        self._ids = count()
        self._turns = TurnTaking([self])
        self._background_step: StepPlan | None = None  # the one under way
        self._by_request: dict[str, Sequence] = {}
        self._by_id: dict[int, Sequence] = {}  # those that the engine knows
        self._new: list[NewSequence] = []
        self._finished: list[int] = []

    # --- requests in

    def add(self, request: GenerationRequest, now: float) -> OutputDelta | None:
        """Queue a request; the delta, if any, refuses it."""
        assert request.request_id not in self._by_request, "request ids are ours and unique"
        if (error := self._refusal(request, now)) is not None:
            return OutputDelta.failed(request.request_id, error)
        room = self.max_model_len - len(request.prompt_token_ids)
        sequence = Sequence(
            sequence_id=next(self._ids),
            request=request,
            max_tokens=min(request.sampling.max_tokens, room),
            token_ids=request.known_token_ids,
        )
        self._by_request[request.request_id] = sequence
        self.queue.put(sequence)
        self._prompts.added(sequence)
        return None

    def _refusal(self, request: GenerationRequest, now: float) -> RequestError | None:
        if (error := check_request(request, self.info, self.max_model_len)) is not None:
            return error
        if (
            self.queue.is_full(request) and not request.output_token_ids
        ):  # a place was found for what was begun elsewhere
            return overloaded(len(self.queue), self.queue.retry_after_ms(now))
        return None

    def abort(self, request_id: str) -> OutputDelta | None:
        """End a request, wherever it is; None when it has ended already."""
        if (sequence := self._by_request.get(request_id)) is None:
            return None
        self.queue.remove(request_id)
        self._finish(sequence)
        computed = sequence.num_computed_prompt_tokens
        queued = sequence.queue_seconds
        return OutputDelta(request_id, finish_reason=FinishReason.ABORT, computed_tokens=computed, queue_seconds=queued)

    def expire(self, now: float) -> list[OutputDelta]:
        """End the requests that waited in vain."""
        return [self._expired(sequence, now) for sequence in self.queue.pop_expired(now, self._prompts.has_begun)]

    def _expired(self, sequence: Sequence, now: float) -> OutputDelta:
        self._finish(sequence)
        request = sequence.request
        error = waited_in_vain(request, now, self.queue.retry_after_ms(now))
        return OutputDelta.failed(request.request_id, error)

    # --- one step

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do, or nothing yet: see `pause`."""
        return self._turns.next_plan(now) or self.farewell()

    def pause(self, now: float) -> float | None:
        """When nothing can be scheduled: in how many seconds that may change by itself. None: it does not."""
        return self._turns.pause(now)

    @property
    def background_is_under_way(self) -> bool:
        return self._background_step is not None

    def wants(self, turn: Turn) -> bool:
        lane = self._lane_of(turn)
        return bool(lane.running or lane.preempted or self.queue.num_waiting(lane.is_background))

    def plan(self, turn: Turn, now: float, *, is_calm: bool) -> StepPlan | None:
        """The next step of one lane; None where nothing of it can run."""
        lane = self._lane_of(turn)
        budget = self._limit.num_tokens
        if lane.is_background:
            budget = background_tokens(budget, is_calm=is_calm)
        scheduled = self._schedule_lane(lane, budget, now)
        if not scheduled:
            return None
        grouped = group_by_length(scheduled, self.config.max_padding_waste)
        self.stats.observe_step(len(scheduled), grouped.cells, grouped.ungrouped)
        plan = self._told(grouped.groups)
        if lane.is_background:
            self._background_step = plan
        return plan

    def farewell(self) -> StepPlan | None:
        """A step that computes nothing: it tells the engine of sequences that have ended, if there are any."""
        return self._told([]) if self._finished else None

    def _told(self, groups: list[list[ScheduledSequence]]) -> StepPlan:
        """With what the engine has to know before it."""
        lanes = self.lanes
        plan = StepPlan(groups, self._new, self._finished, lanes.newly_preempted)
        self._new, self._finished, lanes.newly_preempted = [], [], []
        return plan

    def _lane_of(self, turn: Turn) -> Lane:
        return self.lanes.background if turn is Turn.BACKGROUND else self.lanes.foreground

    def _schedule_lane(self, lane: Lane, budget: int, now: float) -> list[ScheduledSequence]:
        """Decodes first; what is many tokens behind, and who waits, share what they leave."""
        if not lane.is_background and self.lanes.may_set_aside:
            self._let_in_another(lane, now)
        decodes: dict[int, ScheduledSequence] = {}
        prefills: list[Sequence] = []
        for sequence in tuple(lane.running):
            uncomputed = sequence.num_uncomputed_tokens
            if uncomputed > 1:
                prefills.append(sequence)
            elif uncomputed and len(decodes) < budget and self.lanes.make_room(sequence, 1, decodes):
                decodes[sequence.sequence_id] = self._plan(sequence, 1, samples=True)
        scheduled = list(decodes.values())
        if prefills or lane.preempted or self.queue.num_waiting(lane.is_background):
            scheduled += self._schedule_prefills(lane, prefills, self._room(lane, budget, len(decodes)), now)
        return scheduled

    def _room(self, lane: Lane, budget: int, num_decodes: int) -> int:
        """For tokens of prompts. Nobody watches the pace of what runs in the background."""
        budget -= num_decodes
        return budget if lane.is_background else self._pace.prefill_tokens(num_decodes, budget)

    def _schedule_prefills(
        self, lane: Lane, prefills: list[Sequence], budget: int, now: float
    ) -> list[ScheduledSequence]:
        prefills = [s for s in prefills if s.status is SequenceStatus.RUNNING]  # a decode may have taken its blocks
        if budget > 0:
            self._admit(lane, prefills, budget, now)
        wanted = [sequence.num_uncomputed_tokens for sequence in prefills]
        return [
            self._plan(sequence, share, samples=share == uncomputed)
            for sequence, uncomputed, share in zip(prefills, wanted, share_out(budget, wanted), strict=True)
            if share
        ]

    def _admit(self, lane: Lane, prefills: list[Sequence], budget: int, now: float) -> None:
        """Start waiting sequences while there is room for them; nobody overtakes one that does not fit. A few may start
        beyond the step's budget, so that short prompts get their share beside a long one."""
        spare = budget - sum(sequence.num_uncomputed_tokens for sequence in prefills)
        while (spare > 0 or len(prefills) < MAX_PREFILLS) and self._may_admit(lane):
            sequence = self._next(lane)
            if sequence is None or not self._start(sequence, now):
                break
            prefills.append(sequence)
            spare -= sequence.num_uncomputed_tokens

    def _let_in_another(self, lane: Lane, now: float) -> None:
        """Somebody of an account that waits for another one with more places, if no prompt is being computed."""
        if not self.queue.num_waiting(False) or any(s.num_uncomputed_tokens > 1 for s in lane.running):
            return
        other = self.queue.peek(self._prompts.may_start, is_background=False, but=has_most(lane.running))
        if other is not None and self.lanes.lacks_room(other):
            self.lanes.set_aside_for(other)
            self._start(other, now)

    def _may_admit(self, lane: Lane) -> bool:
        """All that run in the background must fit into one of its larger steps. While others wait it only keeps a foot
        in."""
        if not lane.is_background:
            return True
        others_wait = bool(self.lanes.foreground.preempted or self.queue.num_waiting(False))
        return len(lane.running) < (self.lanes.num_kept if others_wait else self._most_in_background)

    @property
    def _most_in_background(self) -> int:
        return background_tokens(self._limit.num_tokens, is_calm=True)

    def _next(self, lane: Lane) -> Sequence | None:
        """Who starts next: of two that are equally urgent, the one that has run already."""
        waiting = self.queue.peek(self._prompts.may_start, is_background=lane.is_background)
        if lane.preempted and (waiting is None or lane.preempted[0].request.priority <= waiting.request.priority):
            return lane.preempted[0]
        return waiting

    def _start(self, sequence: Sequence, now: float) -> bool:
        has_begun = sequence.status is SequenceStatus.PREEMPTED
        if not self.lanes.start(sequence):
            return False
        if not has_begun:
            self._introduce(sequence, now)
        return True

    def _introduce(self, sequence: Sequence, now: float) -> None:
        """Out of the queue, and known to the engine from its next step on."""
        self.queue.pop(sequence, now)
        sequence.first_scheduled = now
        sequence.num_cached_tokens = sequence.num_computed_tokens
        self.stats.cached_tokens += sequence.num_cached_tokens
        uncached = len(sequence.token_ids) - sequence.num_cached_tokens
        self.queue.charge(sequence.request, input_tokens=uncached)
        self._by_id[sequence.sequence_id] = sequence
        self._new.append(sequence.introduction())
        self._prompts.started(sequence)

    def _plan(self, sequence: Sequence, num_tokens: int, samples: bool) -> ScheduledSequence:
        start = sequence.num_computed_tokens
        if start < sequence.num_prompt_tokens:
            self.stats.prefill_tokens += min(num_tokens, sequence.num_prompt_tokens - start)
        sequence.num_computed_tokens += num_tokens
        sequence.num_pending_tokens += samples
        return ScheduledSequence(sequence.sequence_id, start, num_tokens, samples, sequence.block_table)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """How long the engine took for a step, from when it could begin with it."""
        self.stats.step_seconds += seconds
        self._pace.observe(StepLoad.of(plan), seconds)

    def update(self, plan: StepPlan, result: StepResult) -> list[OutputDelta]:
        """Take a step's tokens; the answer has what it added to each request."""
        deltas = []
        if plan is self._background_step:
            self._background_step = None
        if plan.groups and self._limit.passed():
            self.lanes.max_num_seqs = self._limit.num_seqs
        for item in plan.rows:
            sequence = self._by_id.get(item.sequence_id)
            if sequence is None:  # it ended while this step was under way
                continue
            reason = self._append(sequence, result) if item.samples else None
            self._publish(sequence, item)
            delta = self._delta(sequence, reason, result) if item.samples else None
            if result.prompt_logprobs and (told := self._told_of_prompt(sequence, item, result)):
                delta = delta or OutputDelta(sequence.request.request_id)
                delta.prompt_logprobs = told
            if delta is not None:
                deltas.append(delta)
            if reason is not None:
                self._finish(sequence)
        return deltas

    def undo(self, plan: StepPlan, *, was_too_large: bool) -> list[OutputDelta]:
        """A step that was not carried out, for want of memory: its own, or that of the one before it.

        Its sequences lose their room. They come back in smaller steps, and find their full blocks in the prefix cache.
        """
        if plan is self._background_step:
            self._background_step = None
        for item in plan.rows:
            if (sequence := self._by_id.get(item.sequence_id)) is not None:
                sequence.num_pending_tokens -= item.samples
                if sequence.status is SequenceStatus.RUNNING:
                    self.lanes.preempt(sequence)
        self._tell_again(plan)
        return self._shrink(plan.rows) if was_too_large else []

    def _tell_again(self, plan: StepPlan) -> None:
        """What the engine may have missed; of those that the step had, it is given a new record."""
        begin_anew = dict.fromkeys([item.sequence_id for item in plan.rows] + [new.sequence_id for new in plan.new])
        anew = [sequence for number in begin_anew if (sequence := self._by_id.get(number)) is not None]
        self._finished = list(dict.fromkeys([*self._finished, *plan.finished, *begin_anew]))
        self._new = [new for new in self._new if new.sequence_id not in begin_anew]
        self._new += [sequence.introduction() for sequence in anew]
        moved = self.lanes.newly_preempted
        moved += [number for number in plan.preempted if number in self._by_id and number not in moved]

    def _shrink(self, rows: list[ScheduledSequence]) -> list[OutputDelta]:
        self.stats.out_of_memory += 1
        if self._limit.shrink(len(rows), sum(item.num_tokens for item in rows)):
            self.lanes.shrink(self._limit.num_seqs, self._most_in_background)
            return []
        alone = [sequence for item in rows if (sequence := self._by_id.get(item.sequence_id)) is not None]
        for sequence in alone:
            self._finish(sequence)
        return [OutputDelta.failed(sequence.request.request_id, too_large()) for sequence in alone]

    def _told_of_prompt(
        self, sequence: Sequence, item: ScheduledSequence, result: StepResult
    ) -> list[TokenLogprobs] | None:
        """A step's own alone, so that no message carries those of a whole long prompt."""
        told = result.prompt_logprobs.get(item.sequence_id)
        return None if told is None else sequence.new_prompt_logprobs(item.start, told)

    def _append(self, sequence: Sequence, result: StepResult) -> FinishReason | None:
        """A complete grammar ends an answer as a stop token does."""
        reason = sequence.append(result.tokens[sequence.sequence_id])
        if sequence.sequence_id not in result.ended:
            return reason
        return FinishReason.STOP if result.ended[sequence.sequence_id] is None else FinishReason.ERROR

    def _publish(self, sequence: Sequence, item: ScheduledSequence) -> None:
        """The blocks that this step filled can be shared from now on, if the sequence still has them."""
        if sequence.block_table is not item.block_table:
            return
        first, end = item.start // self.info.block_size, item.context_len // self.info.block_size
        if first != end:
            hashes = sequence.hashes(self.info.block_size, item.context_len)
            for index in range(first, end):
                self.pool.publish(item.block_table[index], hashes[index])
        if sequence.request.group:
            self._prompts.computed(sequence, item.context_len)

    def _delta(self, sequence: Sequence, reason: FinishReason | None, result: StepResult) -> OutputDelta:
        request, number = sequence.request, sequence.sequence_id
        delta = OutputDelta(request.request_id, [sequence.token_ids[-1]], reason, result.ended.get(number))
        if result.logprobs and number in result.logprobs:
            delta.logprobs.append(result.logprobs[number])
        if sequence.num_output_tokens == len(request.output_token_ids) + 1:
            delta.cached_tokens = sequence.num_cached_tokens
            delta.queue_seconds = sequence.queue_seconds
        self.queue.charge(request, output_tokens=1)
        self.stats.generated_tokens += 1
        return delta

    # --- endings

    def _finish(self, sequence: Sequence) -> None:
        self._prompts.ended(sequence)
        self.lanes.end(sequence)
        if self._by_id.pop(sequence.sequence_id, None) is not None:
            self._finished.append(sequence.sequence_id)
            if self._new:  # it was to be introduced anew: see `undo`
                self._new = [new for new in self._new if new.sequence_id != sequence.sequence_id]
        del self._by_request[sequence.request.request_id]
        sequence.status = SequenceStatus.FINISHED

    # --- what others may see

    @property
    def has_work(self) -> bool:
        return bool(self._by_request)

    def snapshot(self) -> WorkerStats:
        """The live statistics object, its gauges brought up to date."""
        self.stats.running = self.lanes.num_begun
        self.stats.preemptions = self.lanes.num_preemptions
        self.stats.waiting = len(self.queue)
        self.stats.kv_blocks_used = self.pool.num_used
        return self.stats

    def check_integrity(self) -> None:
        """Every sequence is in exactly one place, and every block is accounted for."""
        self.queue.check_integrity()
        self.lanes.check_integrity()
        lanes = (self.lanes.foreground, self.lanes.background)
        states = [s.status for s in self._by_request.values()]
        assert states.count(SequenceStatus.RUNNING) == sum(len(lane.running) for lane in lanes)
        assert states.count(SequenceStatus.PREEMPTED) == sum(len(lane.preempted) for lane in lanes)
        assert states.count(SequenceStatus.WAITING) == len(self.queue)
        assert SequenceStatus.FINISHED not in states
        assert len(self.lanes.background.running) <= self._most_in_background
        self._prompts.check_integrity(list(self._by_request.values()))
