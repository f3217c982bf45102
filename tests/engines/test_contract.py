"""What every kind of engine does behind its worker: one suite, run over all of them.

Each kind's worker is a process of its own, spoken to as a gateway does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from batching.batcher import Batcher
from batching.client import Receiver, WorkerClient
from batching.protocol import WorkerConfig
from batching.scheduler import Scheduler, SchedulerConfig
from batching.supervisor import WorkerSupervisor
from batching.worker import Worker, listen
from engines import registry
from engines.steps import StepPlan, StepResult
from engines.types import (
    EngineConfig,
    EngineInfo,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    OutputDelta,
    SamplingParams,
    TokenLogprobs,
)
from tests.engines.kinds import CONTEXT, KINDS, OTHER_CONTEXT, Kind
from tests.fakes import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = 180  # tokens: enough steps for something to happen meanwhile
WAIT = 60.0  # seconds
ids = map("r{}".format, itertools.count())


def prompt(length: int, seed: int = 0) -> list[int]:
    return [2 + (7 * i + 31 * seed) % 148 for i in range(length)]


def make_request(token_ids: list[int], max_tokens: int, **sampling: Any) -> GenerationRequest:
    """Greedy, unless said otherwise."""
    now = time.monotonic()
    params = SamplingParams(**({"max_tokens": max_tokens, "temperature": 0.0} | sampling))
    return GenerationRequest(next(ids), "account", token_ids, params, arrival=now, deadline=now + 600)


async def read_to_end(receiver: Receiver, whole: OutputDelta | None = None) -> OutputDelta:
    """Everything from `whole` on, in one delta."""
    whole = whole or await asyncio.wait_for(receiver.get(), WAIT)
    while whole.finish_reason is None:
        delta = await asyncio.wait_for(receiver.get(), WAIT)
        whole = msgspec.structs.replace(
            delta,
            token_ids=whole.token_ids + delta.token_ids,
            cached_tokens=whole.cached_tokens,
            queue_seconds=whole.queue_seconds,
            logprobs=whole.logprobs + delta.logprobs,
            prompt_logprobs=whole.prompt_logprobs + delta.prompt_logprobs,
        )
    return whole


@dataclass
class Served:
    """One kind's worker. `alone` remembers what an idle worker answers."""

    kind: Kind
    config: EngineConfig
    supervisor: WorkerSupervisor
    answers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    @property
    def client(self) -> WorkerClient:
        assert self.supervisor.client is not None, "the worker is away"
        return self.supervisor.client

    @property
    def info(self) -> EngineInfo:
        assert self.supervisor.info is not None
        return self.supervisor.info

    def submit(self, token_ids: list[int], max_tokens: int, **sampling: Any) -> Receiver:
        return self.client.submit(make_request(token_ids, max_tokens, **sampling))

    async def ask(self, token_ids: list[int], max_tokens: int, **sampling: Any) -> OutputDelta:
        return await read_to_end(self.submit(token_ids, max_tokens, **sampling))

    async def alone(self, token_ids: list[int], max_tokens: int) -> list[int]:
        key = (*token_ids, max_tokens)
        if key not in self.answers:
            self.answers[key] = (await self.ask(token_ids, max_tokens)).token_ids
        return self.answers[key]

    async def is_idle(self) -> None:
        await eventually(lambda: (self.client.stats.running, self.client.stats.kv_blocks_used) == (0, 0))


@contextlib.asynccontextmanager
async def started(config: EngineConfig, kind: Kind) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="pen-") as folder:
        worker = WorkerConfig(f"{folder}/w.sock", config, SchedulerConfig(queue_timeout=WAIT))
        supervisor = WorkerSupervisor(worker, config.kind)
        await supervisor.start()
        try:
            yield Served(kind, config, supervisor)
        finally:
            await supervisor.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(KINDS))
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    kind = KINDS[request.param]
    async with started(kind.config(request), kind) as running:
        yield running


async def test_a_late_comer_joins_and_changes_nothing(served: Served) -> None:
    alone = [await served.alone(prompt(30), LONG), await served.alone(prompt(50, seed=1), 20)]
    first = served.submit(prompt(30), LONG)
    begun = await asyncio.wait_for(first.get(), WAIT)
    late = await served.ask(prompt(50, seed=1), 20)
    whole = await read_to_end(first, begun)
    assert [whole.token_ids, late.token_ids] == alone


async def test_an_abort_ends_one_request_and_frees_its_memory(served: Served) -> None:
    alone = await served.alone(prompt(40, seed=2), 30)
    doomed = served.submit(prompt(33), LONG)
    begun = await asyncio.wait_for(doomed.get(), WAIT)
    neighbour = served.submit(prompt(40, seed=2), 30)
    served.client.abort(doomed.request_id)
    end = await read_to_end(doomed, begun)
    assert (end.finish_reason, end.error, end.computed_tokens) == (FinishReason.ABORT, None, 33)
    assert len(end.token_ids) < LONG
    assert (await read_to_end(neighbour)).token_ids == alone
    await served.is_idle()


async def test_a_stop_token_ends_the_answer(served: Served) -> None:
    whole = await served.alone(prompt(12, seed=3), 40)
    position = max(whole.index(token) for token in set(whole))  # of the token that comes up last for the first time
    assert position > 0
    stop = frozenset({whole[position]})
    end = await served.ask(prompt(12, seed=3), 40, stop_token_ids=stop)
    assert (end.token_ids, end.finish_reason) == (whole[: position + 1], FinishReason.STOP)
    endless = await served.ask(prompt(12, seed=3), 40)
    assert (endless.token_ids, endless.finish_reason) == (whole, FinishReason.LENGTH)


PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.5, "repetition_penalty": 1.3}
BANNED_AT_FIRST = {"min_tokens": 12, "stop_token_ids": frozenset(range(150))}  # and then ends the answer
CONTINUED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalties": PENALTIES,
    "greedy, min_tokens": BANNED_AT_FIRST,
    "seeded": {"temperature": 1.0, "seed": 3, "top_p": 0.95},
    "seeded, penalties": {"temperature": 1.3, "seed": 2**63 - 1, "logit_bias": {7: 2.0}, **PENALTIES},
    "seeded, min_tokens": {"temperature": 1.0, "seed": 1, "top_k": 9, **BANNED_AT_FIRST},
}


@pytest.mark.parametrize("settings", CONTINUED.values(), ids=CONTINUED)
async def test_an_answer_that_another_engine_began(served: Served, settings: dict[str, Any]) -> None:
    """It goes on from any of its tokens as if nothing had happened."""
    request = make_request([*served.kind.chain, *prompt(37, seed=4)], 24, **settings)
    if not request.sampling.can_continue(served.info.continuation):
        pytest.skip(f"it continues {served.info.continuation} answers only, and says so")
    whole = await read_to_end(served.client.submit(request))
    for num_known in (1, 6, len(whole.token_ids) - 1):
        begun = replace(request, request_id=next(ids), output_token_ids=whole.token_ids[:num_known])
        rest = await read_to_end(served.client.submit(begun))
        assert begun.output_token_ids + rest.token_ids == whole.token_ids
        assert rest.finish_reason is whole.finish_reason


async def test_what_can_not_be_continued_is_refused(served: Served) -> None:
    unseeded = make_request(prompt(9), 24, temperature=1.0)
    full = make_request(prompt(9), 2)
    for request, output in ((unseeded, [3]), (full, [3, 4]), (make_request(prompt(9), 24), [-1])):
        end = await read_to_end(served.client.submit(replace(request, output_token_ids=output)))
        assert end.error is not None
        assert (end.error.code, end.token_ids) == (ErrorCode.INVALID, [])


async def test_a_seed_decides_whoever_else_is_served(served: Served) -> None:
    if not served.kind.samples:
        pytest.skip("its answers do not depend on sampling")
    settings = [{"temperature": 1.0, "seed": seed, "top_p": 0.95} for seed in range(4)]
    alone = [(await served.ask(prompt(20), 24, **chosen)).token_ids for chosen in settings]
    others = [served.submit(prompt(5 + i, seed=i), 24, temperature=1.0) for i in range(20)]
    crowd = [served.submit(prompt(20), 24, **chosen) for chosen in settings]
    together = [(await read_to_end(receiver)).token_ids for receiver in crowd]
    for receiver in others:
        await read_to_end(receiver)
    assert together == alone
    assert len(set(map(tuple, alone))) == len(alone)


async def test_tokens_are_counted(served: Served) -> None:
    """Of the answer, and of the prompt those that were computed for another request of this account."""
    token_ids, size = prompt(3 * served.info.block_size + 1, seed=9), served.info.block_size
    first, again, longer = [await served.ask(ids, 7) for ids in (token_ids, token_ids, [*token_ids[: 2 * size], 5, 6])]
    assert [len(end.token_ids) for end in (first, again, longer)] == [7, 7, 7]
    assert [end.cached_tokens for end in (first, again, longer)] == [0, 3 * size, 2 * size]
    assert again.token_ids == first.token_ids
    assert all(end.queue_seconds >= 0 for end in (first, again, longer))


ASKED: dict[str, Any] = {"logprobs": 2, "prompt_logprobs": 1}


def same(one: list[TokenLogprobs], other: list[TokenLogprobs]) -> bool:
    """But for the last digits, which depend on who else is in a batch."""
    numbers = [[told.logprob for told in each] for each in (one, other)]
    return numbers[0] == pytest.approx(numbers[1], abs=1e-3)


async def test_how_likely_every_token_was(served: Served) -> None:
    token_ids = prompt(2 * served.info.block_size + 5, seed=12)
    end = await served.ask(token_ids, 12, **ASKED)
    if not served.info.tells_logprobs:
        assert end.error is not None
        assert (end.error.code, end.token_ids) == (ErrorCode.INVALID, [])
        return
    assert (len(end.logprobs), len(end.prompt_logprobs)) == (12, len(token_ids) - 1)
    assert [told.top[0][0] for told in end.logprobs] == end.token_ids, "greedy takes the likeliest"
    assert [told.top[0][1] for told in end.logprobs] == [told.logprob for told in end.logprobs]
    assert all(told.logprob <= told.top[0][1] <= 0 for told in end.prompt_logprobs)
    others = [served.submit(prompt(5 + i, seed=i), 24) for i in range(9)]
    again = await served.ask(token_ids, 12, **ASKED)  # not out of the prefix cache
    assert same(again.logprobs, end.logprobs)
    assert same(again.prompt_logprobs, end.prompt_logprobs)
    silent = await read_to_end(others[0])
    assert (silent.logprobs, silent.prompt_logprobs) == ([], [])


async def test_an_answer_that_goes_on_is_told_from_there_on(served: Served) -> None:
    if not served.info.tells_logprobs:
        pytest.skip("it tells no logprobs, and says so")
    request = make_request(prompt(37, seed=4), 12, temperature=1.0, seed=3, logprobs=1)
    whole = await read_to_end(served.client.submit(request))
    begun = replace(request, request_id=next(ids), output_token_ids=whole.token_ids[:5])
    rest = await read_to_end(served.client.submit(begun))
    assert same(rest.logprobs, whole.logprobs[5:])


async def test_a_group_computes_its_prompt_once(served: Served) -> None:
    size = served.info.block_size
    if not size:
        pytest.skip("its memory is another server's")
    token_ids = prompt(3 * size + 2, seed=21)
    requests = [replace(make_request(token_ids, 6), group="g") for _ in range(4)]
    ends = [await read_to_end(receiver) for receiver in [served.client.submit(request) for request in requests]]
    assert [end.cached_tokens for end in ends] == [0, 3 * size, 3 * size, 3 * size]
    assert {tuple(end.token_ids) for end in ends} == {tuple(await served.alone(token_ids, 6))}


async def test_the_context_has_an_end(served: Served) -> None:
    assert served.info.max_model_len == CONTEXT
    full = await served.ask(prompt(CONTEXT - 3), 50)
    assert (len(full.token_ids), full.finish_reason) == (3, FinishReason.LENGTH)
    refused = await served.ask(prompt(CONTEXT), 1)
    assert refused.error is not None
    assert (refused.error.code, refused.token_ids) == (ErrorCode.INVALID, [])


async def test_sixty_four_at_once(served: Served) -> None:
    prompts = [prompt(3 + 9 * i, seed=i) for i in range(8)]
    alone = [await served.alone(each, 16) for each in prompts]
    receivers = [served.submit(each, 16) for each in prompts * 8]
    ends = [await read_to_end(receiver) for receiver in receivers]
    assert [end.token_ids for end in ends] == alone * 8
    await served.is_idle()


async def test_a_new_version_takes_over_while_the_old_one_finishes(served: Served) -> None:
    alone = await served.alone(prompt(21), LONG)
    async with started(replace(served.config, max_model_len=OTHER_CONTEXT), served.kind) as new:
        old = served.submit(prompt(21), LONG)
        begun = await asyncio.wait_for(old.get(), WAIT)
        end = await new.ask(prompt(21), LONG)
        assert (end.token_ids, new.info.max_model_len) == (alone[: OTHER_CONTEXT - 21], OTHER_CONTEXT)
        assert (await read_to_end(old, begun)).token_ids == alone
    assert (await served.ask(prompt(21), LONG)).token_ids == alone  # its end is nothing to the other


async def test_the_workers_death_ends_every_request_and_another_takes_its_place(served: Served) -> None:
    alone = await served.alone(prompt(30), LONG)
    receivers = [served.submit(prompt(30 + i), LONG) for i in range(5)]
    begun = [await asyncio.wait_for(receiver.get(), WAIT) for receiver in receivers]
    pid, dead = served.supervisor.pid, served.client
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    ends = [await read_to_end(receiver, delta) for receiver, delta in zip(receivers, begun, strict=True)]
    errors = [end.error.code for end in ends if end.error is not None]
    assert errors == [ErrorCode.ENGINE_FAILED] * 5
    await eventually(lambda: served.supervisor.client not in (None, dead), timeout=WAIT)
    assert served.supervisor.pid != pid
    assert (await served.ask(prompt(30), LONG)).token_ids == alone


async def test_an_error_in_mid_stream_ends_every_request_with_what_it_had(served: Served) -> None:
    """In this process, where the engine can be broken."""
    if not served.kind.is_stepped:
        pytest.skip("its steps are another server's: test_triton_health.py breaks that")
    alone = await served.alone(prompt(30), LONG)
    engine: Any = await asyncio.to_thread(registry.create, served.config)
    execute, steps = engine.execute, itertools.count()

    def fail_later(plan: StepPlan) -> StepResult:
        if next(steps) == 20:
            raise RuntimeError("out of steam")
        result: StepResult = execute(plan)
        return result

    engine.execute = fail_later
    with tempfile.TemporaryDirectory(prefix="pen-") as folder:
        scheduler = Scheduler(engine.info, SchedulerConfig())
        worker = Worker(lambda deliver: Batcher(engine, scheduler, deliver))
        serving = asyncio.create_task(worker.serve(listen(f"{folder}/w.sock")))
        client = await WorkerClient.connect(f"{folder}/w.sock")
        receivers = [client.submit(make_request(prompt(30), LONG)) for _ in range(3)]
        with pytest.raises(ExceptionGroup) as failed:
            await asyncio.wait_for(serving, WAIT)
        assert failed.group_contains(RuntimeError, match="out of steam")
        for gateway in worker._gateways:
            gateway.close()  # as the end of its process does
        ends = [await read_to_end(receiver) for receiver in receivers]
    engine.close()
    for end in ends:
        assert end.error is not None
        assert end.error.code is ErrorCode.ENGINE_FAILED
        assert 0 < len(end.token_ids) < LONG
        assert end.token_ids == alone[: len(end.token_ids)]
