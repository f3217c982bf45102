"""What tests put in the place of the real thing: time, requests, and an engine that checks the plans it is given."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from batching.buckets import count_cells
from batching.pace import Pace, StepLoad
from batching.scheduler import Scheduler, SchedulerConfig
from engines.steps import NewSequence, ScheduledSequence, StepPlan, StepResult
from engines.types import (
    Continuation,
    EngineInfo,
    FinishReason,
    GenerationRequest,
    OutputDelta,
    SamplingParams,
    TokenLogprobs,
)

FOREVER = 1e12
FAR = 10**6  # more tokens than any context
VOCABULARY = 256


@dataclass
class FakeClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


async def eventually(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Returns as soon as the condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


def make_info(**changes: int) -> EngineInfo:
    values: dict[str, Any] = {
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "vocab_size": VOCABULARY,
        "block_size": 4,
        "num_blocks": 1024,
        "token_budget": 64,
        "steps_in_flight": 1,
        "continuation": Continuation.SEEDED,
        "tells_logprobs": True,
    }
    return EngineInfo(**(values | changes))


def make_request(
    request_id: str = "r",
    prompt: Iterable[int] = (1, 2, 3),
    *,
    max_tokens: int = 4,
    min_tokens: int = 0,
    stop: Iterable[int] = (),
    account: str = "a",
    arrival: float = 0.0,
    deadline: float = FOREVER,
    priority: int = 0,
    salt: bytes = b"",
    num_begun: int = 0,
    group: str = "",
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> GenerationRequest:
    """The salt goes into the seed too: that is how `PaperEngine` knows it. `num_begun`: so many tokens of the answer,
    at most, were given by another engine."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=frozenset(stop),
        seed=int.from_bytes(salt, "little"),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    request = GenerationRequest(
        request_id, account, list(prompt), sampling, arrival, deadline, priority=priority, cache_salt=salt, group=group
    )
    begun, _ = oracle_answer(request, len(request.prompt_token_ids) + num_begun + 1)
    return replace(request, output_token_ids=begun[:-1])


def oracle_token(prompt: Sequence[int], index: int) -> int:
    """Token `index` of the one right answer to a prompt. Sixteen values, so that stop tokens come up."""
    return hashlib.blake2b(repr((list(prompt), index)).encode(), digest_size=1).digest()[0] % 16


def oracle_answer(request: GenerationRequest, max_model_len: int) -> tuple[list[int], FinishReason]:
    sampling, prompt, answer = request.sampling, request.prompt_token_ids, []
    for index in range(min(sampling.max_tokens, max_model_len - len(prompt))):
        answer.append(oracle_token(prompt, index))
        if answer[-1] in sampling.stop_token_ids and len(answer) >= sampling.min_tokens:
            return answer, FinishReason.STOP
    return answer, FinishReason.LENGTH


def oracle_logprobs(position: int, token: int) -> TokenLogprobs:
    """Of a sequence's token at this position: it names both."""
    return TokenLogprobs(-1.0 - position, [(token, -1.0)])


@dataclass
class _Record:
    """What an engine knows of a sequence. `chain[i]` names token i and everything before it, as a KV cell does."""

    prompt: list[int]
    sampling: SamplingParams
    tokens: list[int]
    chain: list[int]
    computed: int | None = None  # None: its next row may start behind any cached prefix

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.chain.append(hash((self.chain[-1], token)))


class PaperEngine:
    """Runs plans on paper: its memory holds names of token prefixes, and whatever a real engine would compute wrongly
    (or a tenant could see of another) is an assertion."""

    def __init__(self, info: EngineInfo, max_waste: float = 0.10) -> None:
        self.info = info
        self.max_waste = max_waste
        self.computed_tokens = 0
        self.records: dict[int, _Record] = {}
        self._memory: list[list[int | None]] = [[None] * info.block_size for _ in range(info.num_blocks)]

    def take_over(self, plan: StepPlan) -> None:
        for sequence_id in plan.finished:
            self.records.pop(sequence_id, None)
        for new in plan.new:
            self._introduce(new)
        for sequence_id in plan.preempted:
            self.records[sequence_id].computed = None

    def execute(self, plan: StepPlan) -> StepResult:
        self.take_over(plan)
        rows = plan.rows
        self._check_limits(plan, rows)
        self._check_memory(rows)
        result = StepResult()
        for row in rows:
            self._compute(row)
            self._tell(row, result)
        return result

    def _introduce(self, new: NewSequence) -> None:
        assert new.sequence_id not in self.records, "introduced twice"
        record = _Record(new.prompt_token_ids, new.sampling, [], [hash(("salt", new.sampling.seed))])
        self.records[new.sequence_id] = record
        for token in new.prompt_token_ids + new.output_token_ids:
            record.append(token)
        del record.chain[0]

    def _check_limits(self, plan: StepPlan, rows: list[ScheduledSequence]) -> None:
        ids = [row.sequence_id for row in rows]
        assert len(ids) == len(set(ids)) <= self.info.max_num_seqs
        assert set(ids) <= self.records.keys(), "a sequence that is not known, or known no more"
        assert all(plan.groups), "an empty group"
        assert sum(row.num_tokens for row in rows) <= max(self.info.token_budget, self.info.max_num_seqs)
        cells = [count_cells(group) for group in plan.groups]
        assert sum(c.padding for c in cells) <= self.max_waste * sum(c.real for c in cells) + 1e-6

    def _check_memory(self, rows: list[ScheduledSequence]) -> None:
        """Nobody reads or writes what another one writes in the same step."""
        size, writers = self.info.block_size, {}
        for row in rows:
            assert len(row.block_table) * size >= row.context_len, "positions without a block"
            assert len(set(row.block_table)) == len(row.block_table)
            for index in range(row.start // size, -(-row.context_len // size)):
                assert writers.setdefault(row.block_table[index], row.sequence_id) == row.sequence_id
        for row in rows:
            for block in row.block_table[: -(-row.context_len // size)]:
                assert writers.get(block, row.sequence_id) == row.sequence_id

    def _compute(self, row: ScheduledSequence) -> None:
        record, size = self.records[row.sequence_id], self.info.block_size
        assert row.num_tokens > 0
        assert row.context_len <= len(record.tokens), "a position whose token is not known"
        if record.computed is None:
            assert row.start % size == 0, "only full blocks are shared"
        else:
            assert row.start == record.computed, "a position is left out or computed twice"
        for position in range(row.start):
            cell = self._memory[row.block_table[position // size]][position % size]
            assert cell == record.chain[position], "the cache holds something else"
        for position in range(row.start, row.context_len):
            self._memory[row.block_table[position // size]][position % size] = record.chain[position]
        record.computed = row.context_len
        self.computed_tokens += row.num_tokens

    def _tell(self, row: ScheduledSequence, result: StepResult) -> None:
        record = self.records[row.sequence_id]
        if record.sampling.prompt_logprobs is not None:
            positions = range(row.start + 1, min(row.context_len + 1, len(record.prompt)))
            result.prompt_logprobs[row.sequence_id] = [oracle_logprobs(p, record.prompt[p]) for p in positions]
        if row.samples:
            token = result.tokens[row.sequence_id] = self._sample(row)
            if record.sampling.logprobs is not None:
                result.logprobs[row.sequence_id] = oracle_logprobs(len(record.tokens) - 1, token)

    def _sample(self, row: ScheduledSequence) -> int:
        record = self.records[row.sequence_id]
        assert row.context_len == len(record.tokens), "sampled before its last token was computed"
        token = oracle_token(record.prompt, len(record.tokens) - len(record.prompt))
        record.append(token)
        return token


class WatchedPace(Pace):
    """Remembers its last answer: how many tokens the step may have."""

    allowed = FAR

    def prefill_tokens(self, num_decodes: int, budget: int) -> int:
        answer = super().prefill_tokens(num_decodes, budget)
        self.allowed = num_decodes + answer
        return answer


@dataclass
class _Step:
    plan: StepPlan
    result: StepResult | None = None
    has_failed: bool = False


@dataclass
class Simulation:
    """A scheduler and a PaperEngine, driven as the batcher drives the real ones. Every call is checked."""

    info: EngineInfo
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    clock: FakeClock = field(default_factory=FakeClock)
    lazy: bool = False  # the engine runs a step as late as it can, instead of as soon
    starves: bool = False  # the next step finds too little memory
    seconds: Callable[[StepLoad], float] | None = None  # that a step takes; None: nobody measures it

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.info, self.config)
        self.pace = self.scheduler._pace = WatchedPace(self.info.block_size)
        self.engine = PaperEngine(self.info, self.config.max_padding_waste)
        self.in_flight: deque[_Step] = deque()
        self.requests: dict[str, GenerationRequest] = {}
        self.answers: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self.first: dict[str, OutputDelta] = {}
        self.ends: dict[str, OutputDelta] = {}

    def add(self, request: GenerationRequest) -> OutputDelta | None:
        self.requests[request.request_id] = request
        self.answers[request.request_id] = []
        self.logprobs[request.request_id] = []
        self.prompt_logprobs[request.request_id] = []
        refusal = self.scheduler.add(request, self.clock.now)
        self._take([refusal] if refusal else [])
        return refusal

    def abort(self, request_id: str) -> OutputDelta | None:
        delta = self.scheduler.abort(request_id)
        assert (delta is None) == (request_id in self.ends)
        self._take([delta] if delta else [])
        return delta

    def plan(self) -> StepPlan | None:
        """Plan and submit one step, unless as many as allowed are under way."""
        if len(self.in_flight) >= self.info.steps_in_flight:
            return None
        self._take(self.scheduler.expire(self.clock.now))
        self.pace.allowed = FAR
        plan = self.scheduler.schedule(self.clock.now)
        self.scheduler.check_integrity()
        if plan is None:
            pause = self.scheduler.pause(self.clock.now)
            waits = not self.in_flight and self.scheduler.has_work
            assert not waits or pause is not None, "nothing is under way and nothing will ever be"
            if waits and pause:
                self.clock.advance(pause + 1e-9)
        else:
            num_tokens = sum(row.num_tokens for group in plan.groups for row in group)
            assert num_tokens <= self.pace.allowed, "more than goes with the pace"
            self.in_flight.append(self._submitted(plan))
        return plan

    def _submitted(self, plan: StepPlan) -> _Step:
        if any(step.has_failed for step in self.in_flight):
            return _Step(plan, has_failed=True)
        if self.starves and plan.groups:
            self.starves = False
            return _Step(plan, has_failed=True)
        return _Step(plan, None if self.lazy else self.engine.execute(plan))

    def starve(self) -> None:
        self.starves = True

    def collect(self) -> None:
        if not self.in_flight:
            return
        step = self.in_flight.popleft()
        if step.has_failed:
            self._retreat(step)
        else:
            result = step.result or self.engine.execute(step.plan)
            if self.seconds is not None:
                self.scheduler.observe(step.plan, self.seconds(StepLoad.of(step.plan)))
            self._take(self.scheduler.update(step.plan, result))

    def _retreat(self, failed: _Step) -> None:
        """Whether the engine has taken over what the failed step said, nobody knows."""
        if len(failed.plan.groups) % 2:
            self.engine.take_over(failed.plan)
        steps = [failed, *self.in_flight]
        self.in_flight.clear()
        for step in steps:
            self._take(self.scheduler.undo(step.plan, was_too_large=step is failed))

    def step(self) -> StepPlan | None:
        """Submit what may be under way, then wait for the first; the answer is the last plan submitted."""
        last = None
        while (plan := self.plan()) is not None:
            last = plan
        self.collect()
        return last

    def drain(self, max_steps: int = 20_000) -> int:
        """Run until nothing is left; the number of steps that took."""
        for steps in range(max_steps):
            if not self.in_flight and not self.scheduler.has_work:
                self._check_drained()
                return steps
            self.step()
        raise AssertionError(f"{len(self.scheduler._by_request)} requests don't end")

    def _take(self, deltas: list[OutputDelta]) -> None:
        self.scheduler.check_integrity()
        for delta in deltas:
            assert delta.request_id not in self.ends, "something came after the last delta"
            if delta.has_output or delta.finish_reason is not None:
                self.first.setdefault(delta.request_id, delta)
            assert not (delta.prompt_logprobs and self.answers[delta.request_id]), "a prompt comes before its answer"
            self.answers[delta.request_id] += delta.token_ids
            self.logprobs[delta.request_id] += delta.logprobs
            self.prompt_logprobs[delta.request_id] += delta.prompt_logprobs
            if delta.finish_reason is not None:
                self.ends[delta.request_id] = delta

    def _check_drained(self) -> None:
        self.step()  # announces what finished last
        assert self.scheduler.pool.num_used == 0
        assert not self.engine.records, "the engine was not told of every end"
        assert self.ends.keys() == self.requests.keys()
        for request_id, end in self.ends.items():
            request = self.requests[request_id]
            answer, reason = oracle_answer(request, self.scheduler.max_model_len)
            answer = answer[len(request.output_token_ids) :]
            if end.finish_reason in (FinishReason.ABORT, FinishReason.ERROR):
                assert self.answers[request_id] == answer[: len(self.answers[request_id])]
            else:
                assert (self.answers[request_id], end.finish_reason) == (answer, reason)
            self._check_logprobs(request)

    def _check_logprobs(self, request: GenerationRequest) -> None:
        """Every token was told once, if it was asked for; of a prompt without an answer, those that came."""
        answer, prompt = self.answers[request.request_id], request.prompt_token_ids
        wanted = answer if request.sampling.logprobs is not None else []
        begin = len(request.known_token_ids)
        assert self.logprobs[request.request_id] == [oracle_logprobs(begin + i, t) for i, t in enumerate(wanted)]
        told = self.prompt_logprobs[request.request_id]
        wanted = prompt if request.sampling.prompt_logprobs is not None else prompt[:1]
        expected = [oracle_logprobs(i, t) for i, t in enumerate(wanted)][1:]
        assert told == (expected if answer else expected[: len(told)])
