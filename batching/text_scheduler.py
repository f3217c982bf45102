"""Which texts are turned into vectors together. Pure: no torch, no I/O, the time comes in as `now`.

A request with many texts is worked off over many batches, beside others: the next batch begins with a text of the
account that was served least, and takes those nearest in length from every request that is under way.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, count

from batching.buckets import count_cells, fill_batch
from batching.queue import AdmissionQueue
from batching.refusals import check_texts, overloaded, too_large, waited_in_vain
from batching.scheduler import SchedulerConfig
from batching.stats import WorkerStats
from batching.step_limit import StepLimit
from batching.turns import Turn, TurnTaking, background_tokens
from engines.steps import ScheduledSequence, TextBatch, TextRow
from engines.types import EngineInfo, FinishReason, GenerationRequest, OutputDelta, RequestError


@dataclass(slots=True, eq=False)
class TextRequest:
    """One request's state. `waiting` has the indices of its texts that are in no batch yet, the longest last."""

    sequence_id: int
    request: GenerationRequest
    rows: list[TextRow] = field(init=False)
    waiting: list[int] = field(init=False)
    num_missing: int = field(init=False)  # texts whose vectors are not there yet
    num_scheduled_tokens: int = 0
    num_computed_tokens: int = 0
    queue_seconds: float = 0.0

    def __post_init__(self) -> None:
        spans, ids = self.request.texts, self.request.prompt_token_ids
        ends = accumulate(span.num_tokens for span in spans)
        self.rows = [
            TextRow(ids[end - span.num_tokens : end], span.num_first) for span, end in zip(spans, ends, strict=True)
        ]
        self.waiting = sorted(range(len(spans)), key=lambda index: spans[index].num_tokens)
        self.num_missing = len(spans)

    def put_back(self, index: int) -> None:
        insort(self.waiting, index, key=lambda each: len(self.rows[each].token_ids))


@dataclass(slots=True, frozen=True)
class _Text:
    owner: TextRequest
    index: int

    @property
    def row(self) -> TextRow:
        return self.owner.rows[self.index]

    @property
    def num_tokens(self) -> int:
        return len(self.row.token_ids)


class TextScheduler:
    """Owns every request for vectors from `add` to its last delta."""

    def __init__(self, info: EngineInfo, config: SchedulerConfig) -> None:
        self.info = info
        self.queue: AdmissionQueue[TextRequest] = AdmissionQueue(config.max_queue, config.queue_timeout)
        self.stats = WorkerStats()
        self._max_padding_waste = config.max_padding_waste
        self._ids = count()
        self._running: dict[str, TextRequest] = {}  # by request id, in order of admission
        self._in_flight: deque[list[_Text]] = deque()
        self._turns = TurnTaking([self])
        self._limit = StepLimit(info.max_num_seqs, info.token_budget)

    # --- requests in

    def add(self, request: GenerationRequest, now: float) -> OutputDelta | None:
        """Queue a request; the delta, if any, refuses it."""
        if (error := self._refusal(request, now)) is not None:
            return OutputDelta.failed(request.request_id, error)
        self.queue.put(TextRequest(next(self._ids), request))
        return None

    def _refusal(self, request: GenerationRequest, now: float) -> RequestError | None:
        if (error := check_texts(request, self.info)) is not None:
            return error
        if self.queue.is_full(request):
            return overloaded(len(self.queue), self.queue.retry_after_ms(now))
        return None

    def abort(self, request_id: str) -> OutputDelta | None:
        """End a request, wherever it is; None when it has ended already. What a batch computes is computed."""
        owner = self.queue.remove(request_id) or self._running.pop(request_id, None)
        if owner is None:
            return None
        return OutputDelta(request_id, finish_reason=FinishReason.ABORT, computed_tokens=owner.num_scheduled_tokens)

    def expire(self, now: float) -> list[OutputDelta]:
        """End the requests that waited in vain for their first batch."""
        return [self._expired(owner.request, now) for owner in self.queue.pop_expired(now)]

    def _expired(self, request: GenerationRequest, now: float) -> OutputDelta:
        error = waited_in_vain(request, now, self.queue.retry_after_ms(now))
        return OutputDelta.failed(request.request_id, error)

    # --- one batch

    def schedule(self, now: float) -> TextBatch | None:
        """The next batch, or None when there is nothing to do, or nothing yet: see `pause`."""
        return self._turns.next_plan(now)

    def pause(self, now: float) -> float | None:
        """When nothing can be scheduled: in how many seconds that may change by itself. None: it does not."""
        return self._turns.pause(now)

    @property
    def background_is_under_way(self) -> bool:
        return any(text.owner.request.is_background for texts in self._in_flight for text in texts)

    def wants(self, turn: Turn) -> bool:
        is_background = turn is Turn.BACKGROUND
        running = self._running_in(is_background)
        has_room = len(running) < self.info.max_num_seqs
        return any(owner.waiting for owner in running) or (has_room and self.queue.num_waiting(is_background) > 0)

    def plan(self, turn: Turn, now: float, *, is_calm: bool) -> TextBatch | None:
        is_background = turn is Turn.BACKGROUND
        self._admit(is_background, now)
        candidates = self._candidates(is_background)
        if not candidates:
            return None
        budget = self._limit.num_tokens
        if is_background:
            budget = background_tokens(budget, is_calm=is_calm)
        texts = self._fill(candidates, budget)
        for text in texts:
            self._take(text)
        rows = [ScheduledSequence(text.index, 0, text.num_tokens, False, []) for text in texts]
        self.stats.observe_step(len(rows), count_cells(rows))
        self._in_flight.append(texts)
        return TextBatch([text.row for text in texts])

    def _running_in(self, is_background: bool) -> list[TextRequest]:
        return [owner for owner in self._running.values() if owner.request.is_background == is_background]

    def _candidates(self, is_background: bool) -> list[_Text]:
        return [text for owner in self._running_in(is_background) for text in self._next_texts(owner)]

    def _admit(self, is_background: bool, now: float) -> None:
        """The background takes no place of others."""
        room = self.info.max_num_seqs - len(self._running_in(is_background))
        while room > 0 and (owner := self.queue.peek(is_background=is_background)) is not None:
            room -= 1
            self.queue.pop(owner, now)
            owner.queue_seconds = now - owner.request.arrival
            self._running[owner.request.request_id] = owner

    def _next_texts(self, owner: TextRequest) -> Iterator[_Text]:
        """The longest that wait, no more than a batch can hold: so a request of thousands costs no more to look at."""
        return (_Text(owner, index) for index in reversed(owner.waiting[-self.info.max_num_seqs :]))

    def _fill(self, candidates: list[_Text], token_budget: int) -> list[_Text]:
        first = min(range(len(candidates)), key=lambda i: self._urgency(candidates[i]))
        lengths = [text.num_tokens for text in candidates]
        chosen = fill_batch(first, lengths, self._limit.num_seqs, self._max_padding_waste)
        longest, fitting = 0, 0
        for size, index in enumerate(chosen, start=1):
            longest = max(longest, lengths[index])
            if size > 1 and size * longest > token_budget:
                break
            fitting = size
        return [candidates[i] for i in chosen[:fitting]]

    def _urgency(self, text: _Text) -> tuple[int, int]:
        """Of the least served account; among its requests, and those of others served as much, the oldest."""
        return self.queue.served_to(text.owner.request), text.owner.sequence_id

    def _take(self, text: _Text) -> None:
        owner, num_tokens = text.owner, text.num_tokens
        owner.waiting.remove(text.index)
        owner.num_scheduled_tokens += num_tokens
        self.queue.charge(owner.request, input_tokens=num_tokens)
        self.stats.prefill_tokens += num_tokens

    def observe(self, batch: TextBatch, seconds: float) -> None:
        """How long the engine took for a batch."""
        self.stats.step_seconds += seconds

    def update(self, batch: TextBatch, vectors: list[bytes]) -> list[OutputDelta]:
        """A delta for each request that the oldest batch in flight held texts of, unless it was aborted meanwhile."""
        self._limit.passed()
        deltas: dict[str, OutputDelta] = {}
        for text, vector in zip(self._in_flight.popleft(), vectors, strict=True):
            owner, request_id = text.owner, text.owner.request.request_id
            if self._running.get(request_id) is not owner:
                continue
            delta = deltas.setdefault(request_id, OutputDelta(request_id, queue_seconds=owner.queue_seconds))
            delta.vectors[text.index] = vector
            owner.num_missing -= 1
            owner.num_computed_tokens += text.num_tokens
            delta.computed_tokens = owner.num_computed_tokens
            if not owner.num_missing:
                delta.finish_reason = FinishReason.STOP
                del self._running[request_id]
        return list(deltas.values())

    def undo(self, batch: TextBatch, *, was_too_large: bool) -> list[OutputDelta]:
        """The oldest batch in flight was not carried out, for want of memory: its own, or that of the step before it.
        Its texts come back in smaller ones."""
        texts = self._in_flight.popleft()
        for text in texts:
            text.owner.num_scheduled_tokens -= text.num_tokens
            text.owner.put_back(text.index)
        if not was_too_large:
            return []
        self.stats.out_of_memory += 1
        longest = max(text.num_tokens for text in texts)
        if self._limit.shrink(len(texts), len(texts) * longest) and len(texts) > 1:
            return []
        owners = [owner for text in texts if (owner := self._running.pop(text.owner.request.request_id, None))]
        return [OutputDelta.failed(owner.request.request_id, too_large()) for owner in owners]

    # --- what others see

    def snapshot(self) -> WorkerStats:
        """The live statistics object, its gauges brought up to date."""
        self.stats.running, self.stats.waiting = len(self._running), len(self.queue)
        return self.stats

    def check_integrity(self) -> None:
        self.queue.check_integrity()
        in_flight = [text for batch in self._in_flight for text in batch]
        for owner in self._running.values():
            flying = sum(text.owner is owner for text in in_flight)
            assert owner.num_missing == len(owner.waiting) + flying > 0
            lengths = [len(owner.rows[index].token_ids) for index in owner.waiting]
            assert lengths == sorted(lengths)
