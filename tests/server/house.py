"""A gateway on paper: workers whose every token the test decides, and the books of all that a request touches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from batching.client import Receiver
from batching.stats import WorkerStats
from engines.fake import fake_logprobs, fake_prompt_logprobs
from engines.fake_tokens import digest_prompt, fake_answer
from engines.types import (
    Continuation,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    OutputDelta,
    RequestError,
    SamplingParams,
)
from quota.ledger import QuotaDecision
from quota.levels import Dimension, Layer, Level, Plan
from quota.memory import MemoryLedger
from server.auth import Principal
from server.balancing import Replica
from server.cache.answering import answering
from server.cache.cache import ResponseCache
from server.entitlement import Entitlement
from server.generation import Generation, Resources
from server.job import Caller, Job, PreparedPrompt, Reading
from server.leases import LeaseKeeper
from server.metrics import Metrics
from server.plans import PlanBook
from server.registry import Deployment
from server.settings_sections import TimeoutSettings
from server.store.records import KeyKind, UsageRecord
from server.text.answer import AnswerStream
from server.text.logprobs import TokenTeller
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer
from server.tracing.timeline import Timeline
from server.wire.common import ResponseHead

PROMPT = list(b"what is a penstock?")
NUM_TOKENS = 6
ANSWER = bytes(fake_answer(PROMPT, NUM_TOKENS)).decode()
LOST = RequestError(ErrorCode.ENGINE_FAILED, "The engine stopped.")
PRINCIPAL = Principal("acct", "acme", "key", KeyKind.API, None, None, "default", {}, {}, None)
PLAN = {"account": {"concurrent": 8, "requests_per_day": 1000, "tokens_per_day": 1_000_000}}


class NetworkLedger(MemoryLedger):
    """As if it were elsewhere: every call can be interrupted before and after the ledger has done it."""

    async def reserve(self, lease_id: str, account: str, layers: Collection[Layer], tokens: int) -> QuotaDecision:
        await asyncio.sleep(0)
        decision = await super().reserve(lease_id, account, layers, tokens)
        await asyncio.sleep(0)
        return decision

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        await asyncio.sleep(0)
        settled = await super().settle(lease_id, account, tokens)
        await asyncio.sleep(0)
        return settled

    async def release(self, lease_id: str, account: str) -> bool:
        await asyncio.sleep(0)
        released = await super().release(lease_id, account)
        await asyncio.sleep(0)
        return released


@dataclass
class PaperWorker:
    """A worker's client: every turn of the loop computes four tokens of each prompt, or one of its answer."""

    hangs_at: int | None = None  # after so many tokens nothing comes any more, and no abort is answered
    queues: bool = False  # nothing is ever begun
    raises: BaseException | None = None
    dies_with: Collection[int] = ()  # these tokens come together with the engine's death
    dies_at_prompt: Collection[int] = ()  # these positions are told together with the engine's death
    refuses: RequestError | None = None  # whatever it is sent
    answer: list[int] | None = None  # instead of the deterministic engine's
    stats: WorkerStats = field(default_factory=WorkerStats)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    receivers: dict[str, Receiver] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)  # prompt and answer, by request
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    num_lost: int = 0  # requests, with its death

    def submit(self, request: GenerationRequest, ready: asyncio.Event | None = None) -> Receiver:
        if self.raises is not None:
            raise self.raises
        receiver = self.receivers[request.request_id] = Receiver(request.request_id, ready)
        self.computed[request.request_id] = 0
        self.requests.append(request)
        if self.refuses is not None:
            self._soon(self._fail, request, self.refuses)
        elif not self.queues:
            self._soon(self._turn, request)
        return receiver

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        asyncio.get_running_loop().call_soon(call, *arguments)

    def _turn(self, request: GenerationRequest) -> None:
        if request.request_id not in self.receivers:
            return
        prompt = request.prompt_token_ids
        done = self.computed[request.request_id]
        index = done - len(prompt) + len(request.output_token_ids)
        if done < len(prompt):
            self.computed[request.request_id] = min(done + 4, len(prompt))
            if request.sampling.prompt_logprobs is not None:
                self._tell_prompt(request, done)
        elif self.hangs_at is not None and index >= self.hangs_at:
            return
        else:
            self.computed[request.request_id] += 1
            self._give(request, index)
        self._soon(self._turn, request)

    def _give(self, request: GenerationRequest, index: int) -> None:
        prompt, sampling = request.prompt_token_ids, request.sampling
        answer = self.answer or fake_answer(prompt, index + 1)
        last = index + 1 == sampling.max_tokens and index not in self.dies_with
        delta = OutputDelta(request.request_id, [answer[index]], FinishReason.LENGTH if last else None)
        if sampling.logprobs is not None:
            delta.logprobs = [fake_logprobs(answer[index], answer[index], sampling.logprobs)]
        self._put(delta)
        if index in self.dies_with:
            self._fail(request, LOST)

    def _tell_prompt(self, request: GenerationRequest, start: int) -> None:
        prompt, count = request.prompt_token_ids, request.sampling.prompt_logprobs or 0
        digest, positions = digest_prompt(prompt), range(max(start, 1), min(start + 4, len(prompt)))
        told = [fake_prompt_logprobs(digest, position, prompt[position], count) for position in positions]
        self._put(OutputDelta(request.request_id, prompt_logprobs=told))
        if start + 4 in self.dies_at_prompt:
            self._fail(request, LOST)

    def _fail(self, request: GenerationRequest, error: RequestError) -> None:
        self._put(OutputDelta(request.request_id, finish_reason=FinishReason.ERROR, error=error))

    def _put(self, delta: OutputDelta) -> None:
        if (receiver := self.receivers.get(delta.request_id)) is None:
            return
        if delta.finish_reason is not None:
            del self.receivers[delta.request_id]
        receiver.put(delta)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if self.hangs_at is None:
            self._soon(self._answer_abort, request_id)

    def _answer_abort(self, request_id: str) -> None:
        computed = min(self.computed[request_id], len(PROMPT))
        self._put(OutputDelta(request_id, finish_reason=FinishReason.ABORT, computed_tokens=computed))

    def forget(self, request_id: str) -> None:
        self.receivers.pop(request_id, None)


@dataclass
class House:
    """What a generation touches, and the books of all of it."""

    worker: PaperWorker = field(default_factory=PaperWorker)
    ledger: MemoryLedger = field(default_factory=NetworkLedger)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    plan: dict[str, Any] = field(default_factory=lambda: PLAN)
    records: list[UsageRecord] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)
    num_requests: int = 0
    others: tuple[PaperWorker, ...] = ()  # of the replicas beside the first, which gets what comes first
    continuation: Continuation = Continuation.SEEDED
    cache: ResponseCache | None = None

    def __post_init__(self) -> None:
        self.replicas = [Replica(SimpleNamespace(client=worker)) for worker in (self.worker, *self.others)]  # type: ignore[arg-type]
        self.replica = self.replicas[0]
        self.leases = LeaseKeeper(self.ledger)
        self.deployment = Deployment(
            "echo",
            "1",
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            self.replicas,
            "fp",
            continuation=self.continuation,
        )
        plans = PlanBook({"default": Plan.parse("default", self.plan)}, cast(Any, None))
        self.entitlement = Entitlement(self.ledger, plans, lambda _: None)
        self.resources = Resources(
            entitlement=self.entitlement,
            leases=self.leases,
            metrics=Metrics(),
            timeouts=self.timeouts,
            finished=lambda record, _: self.records.append(record),
            salt_key=b"salt",
            is_draining=lambda: False,
            cache=self.cache,
            trace=lambda _record, _job, timeline: self.timelines.append(timeline),
        )

    def generation(
        self,
        num_prompts: int = 1,
        *,
        stop: str = "",
        streamed: bool = True,
        sampling: Mapping[str, Any] | None = None,
        samples: tuple[int, int] = (1, 1),
        echo: str | None = None,
        only_prompt: bool = False,
        principal: Principal = PRINCIPAL,
        **caller: Any,
    ) -> Generation:
        """`samples`: how many answers are computed to each prompt, and how many are wanted."""
        self.num_requests += 1
        layers = self.entitlement.layers(principal, "echo", "1", {"chat"})
        head = ResponseHead("chatcmpl-1", 0, "echo@1", "fp")
        who = Caller(principal, f"req-{self.num_requests}", "/v1/chat/completions", **caller)
        prompts = [prepared(stop, echo, only_prompt, **(sampling or {})) for _ in range(num_prompts)]
        job = Job(
            who,
            self.deployment,
            prompts,
            frozenset({"chat"}),
            head,
            layers,
            streamed,
            include_usage=False,
            num_samples=samples[0],
            num_wanted=samples[1],
        )
        return answering(job, self.resources)

    async def used(self, dimension: Dimension) -> int:
        usage = await self.ledger.usage("acct")
        return sum(c.used for c in usage.counters if c.dimension is dimension and c.level is Level.ACCOUNT)

    async def check_nothing_left(self) -> None:
        """No lease, no place, no receiver, and what the rows say is what the account was charged."""
        await self.ledger.check_integrity()
        assert not (await self.ledger.usage("acct")).leases
        assert await self.used(Dimension.CONCURRENT) == 0
        assert [(replica.num_open, replica.open_tokens) for replica in self.replicas] == [(0, 0)] * len(self.replicas)
        assert self.leases.num_held == 0
        assert not any(worker.receivers for worker in (self.worker, *self.others))
        tokens = [record.prompt_tokens + record.completion_tokens for record in self.records]
        assert await self.used(Dimension.TOKENS_PER_DAY) == self.num_charged
        assert await self.used(Dimension.REQUESTS_PER_DAY) == sum(1 for count in tokens if count)

    @property
    def failovers(self) -> dict[str, int]:
        (family,) = self.resources.metrics.health.failovers.collect()
        return {s.labels["outcome"]: int(s.value) for s in family.samples if s.name.endswith("_total")}

    @property
    def num_charged(self) -> int:
        computed = [record for record in self.records if not record.is_replayed]
        return sum(record.prompt_tokens + record.completion_tokens for record in computed)


def prepared(stop: str, echo: str | None = None, only_prompt: bool = False, **sampling: Any) -> PreparedPrompt:
    stops = [stop] if stop else []
    params = SamplingParams(**({"max_tokens": NUM_TOKENS} | sampling))

    def new_stream() -> AnswerStream:
        text = TextStream(ByteTokenizer().detokenizer(), stops, min_tokens=params.min_tokens)
        if params.logprobs is None:
            return AnswerStream(text)
        offset = len(echo or "")
        return AnswerStream(text, tokens=TokenTeller(ByteTokenizer().detokenizer(), lambda _: "", offset=offset))

    reading = Reading(tuple(stops), params.min_tokens)
    return PreparedPrompt(PROMPT, params, new_stream, len, reading=reading, echo=echo, only_prompt=only_prompt)


async def read(generation: Generation) -> str:
    """As a stream's response does it."""
    text = ""
    async with generation:
        while not generation.is_done:
            text += "".join(piece.text for piece in await generation.next())
    return text


async def read_whole(generation: Generation) -> str:
    async with generation:
        return "".join(answer.text for answer in await generation.collect())


async def cancel_after(turns: int, work: Awaitable[object]) -> bool:
    """Cancel it after so many turns of the loop. Whether it was still running."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    running = task.cancel()
    await asyncio.wait([task])
    return running and task.cancelled()
