"""Our own worker inside a real Triton: what its sessions carry, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from batching.batcher import Batcher
from batching.relay import Relay, RelayConfig
from batching.scheduler import Scheduler, SchedulerConfig
from engines import registry
from engines.base import EngineError
from engines.fake_tokens import fake_answer
from engines.hosting import SessionAction
from engines.triton.hosted import HostedEngine
from engines.types import EngineConfig, ErrorCode, FinishReason, GenerationRequest, OutputDelta, SamplingParams
from server.settings_models import BUNDLED_FOLDER
from tests.fakes import eventually
from tests.hosted_models import HostedModel, paced
from tests.triton_server import TritonServer, running_triton

pytestmark = pytest.mark.triton

ENDLESS = 900_000


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models = [paced(name, 10) for name in ("killed", "stopped", "unloaded", "left")]
    models += [paced("narrow", 10, "--max-num-seqs", "1", "--max-queue", "2")]
    models += [HostedModel("failing", ("--options", '{"delay_ms": 10, "fail_at_step": 20}'))]
    yield from running_triton(tmp_path_factory.mktemp("mortal-host"), models, with_packages=True)


def build(server: TritonServer, model: str, **config: Any) -> HostedEngine:
    engine = registry.create(
        EngineConfig("triton", url=server.url, remote_model=model, name=f"{model}@1", **({"path": ""} | config))
    )
    assert isinstance(engine, HostedEngine)
    return engine


def ask(request_id: str, prompt: list[int], max_tokens: int, **sampling: Any) -> GenerationRequest:
    """Greedy, unless said otherwise."""
    now = time.monotonic()
    params = SamplingParams(max_tokens, **({"temperature": 0.0} | sampling))
    return GenerationRequest(request_id, "account", prompt, params, arrival=now, deadline=now + 600)


@dataclass
class Client:
    """A relay, and what it delivers."""

    relay: Relay
    deltas: dict[str, list[OutputDelta]] = field(default_factory=dict)

    def submit(self, request_id: str, prompt: list[int], max_tokens: int = 12) -> None:
        self.add(ask(request_id, prompt, max_tokens))

    def add(self, request: GenerationRequest) -> None:
        self.deltas[request.request_id] = []
        self.relay.add(request)

    def take(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            assert not self.has_ended(delta.request_id), "one end for each"
            self.deltas[delta.request_id].append(delta)

    def has_ended(self, request_id: str) -> bool:
        deltas = self.deltas[request_id]
        return bool(deltas) and deltas[-1].finish_reason is not None

    def tokens(self, request_id: str) -> list[int]:
        return [token for delta in self.deltas[request_id] for token in delta.token_ids]

    async def end_of(self, request_id: str, timeout: float = 60) -> OutputDelta:
        await eventually(lambda: self.has_ended(request_id), timeout)
        return self.deltas[request_id][-1]

    async def has_begun(self, request_id: str) -> None:
        await eventually(lambda: bool(self.deltas[request_id]))

    async def is_well_again(self) -> None:
        await eventually(lambda: self.relay.snapshot().ready, 60)
        request_id = f"again{len(self.deltas)}"
        self.submit(request_id, [7, 8], 3)
        await self.end_of(request_id)
        assert self.tokens(request_id) == fake_answer([7, 8], 3)


@contextlib.asynccontextmanager
async def connected(
    server: TritonServer, model: str, queue_timeout: float = 60, **config: Any
) -> AsyncIterator[Client]:
    engine = await asyncio.to_thread(build, server, model, **config)
    client: Client

    def deliver(deltas: list[OutputDelta]) -> None:
        client.take(deltas)

    client = Client(Relay(engine, RelayConfig(SchedulerConfig(2, queue_timeout), 0, lambda: None), deliver))
    running = asyncio.create_task(client.relay.run())
    await eventually(lambda: client.relay.snapshot().ready or running.done())
    try:
        yield client
        assert not running.done(), "nobody listens any more"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def statistics(server: TritonServer, model: str) -> dict[str, int]:
    """Requests and executions as Triton counts them."""
    stats = httpx.get(f"http://{server.http_url}/v2/models/{model}/stats").json()["model_stats"][0]
    return {key: stats[key] for key in ("inference_count", "execution_count")}


# --- answers


async def test_sixty_four_answers_and_far_fewer_responses(hosting_triton: TritonServer) -> None:
    before = statistics(hosting_triton, "fake")
    async with connected(hosting_triton, "fake") as client:
        for i in range(64):
            client.submit(f"r{i}", [i + 1] * (i + 1), 200)
        for i in range(64):
            assert (await client.end_of(f"r{i}")).finish_reason is FinishReason.LENGTH
            assert client.tokens(f"r{i}") == fake_answer([i + 1] * (i + 1), 200)
    after = statistics(hosting_triton, "fake")
    assert after["execution_count"] - before["execution_count"] < 20, "what is said together is one request"


SAMPLED = {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.5, "logit_bias": {5: -100.0}}
WAYS: list[dict[str, Any]] = [{}, *({"seed": seed, **SAMPLED} for seed in range(4)), {"min_tokens": 3, "top_k": 20}]


async def test_the_bundled_model_answers_as_on_the_native_engine(hosting_triton: TritonServer) -> None:
    """Greedy, and sampled with what the native engine knows."""
    asked = [ask(f"r{i}", [3 + (11 * i + j) % 200 for j in range(5 + 9 * i)], 40, **way) for i, way in enumerate(WAYS)]
    config = EngineConfig("torch", str(BUNDLED_FOLDER), dtype="float32", max_model_len=256, options={"threads": 1})
    native = await on_the_native_engine(config, asked)
    async with connected(hosting_triton, "chat") as client:
        for request in asked:
            client.add(request)
        ends = [await client.end_of(request.request_id) for request in asked]
    assert [client.tokens(request.request_id) for request in asked] == native
    assert [end.finish_reason for end in ends] == [FinishReason.LENGTH] * len(asked)


async def on_the_native_engine(config: EngineConfig, asked: list[GenerationRequest]) -> list[list[int]]:
    engine: Any = await asyncio.to_thread(registry.create, config)
    answers: dict[str, list[int]] = {request.request_id: [] for request in asked}

    def deliver(deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            answers[delta.request_id] += delta.token_ids

    batcher = Batcher(engine, Scheduler(engine.info, SchedulerConfig()), deliver)
    running = asyncio.create_task(batcher.run())
    for request in asked:
        batcher.add(request)
    await eventually(lambda: all(len(tokens) == 40 for tokens in answers.values()), 60)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    engine.close()
    return list(answers.values())


async def test_an_abort_tells_what_was_computed_and_nobody_else_notices(mortal: TritonServer) -> None:
    async with connected(mortal, "left") as client:
        client.submit("doomed", [1] * 30, ENDLESS)
        await client.has_begun("doomed")
        client.submit("late", [2] * 5, 20)
        client.relay.abort("doomed")
        end = await client.end_of("doomed")
        assert (end.finish_reason, end.computed_tokens) == (FinishReason.ABORT, 30)
        await client.end_of("late")
        assert client.tokens("late") == fake_answer([2] * 5, 20)


async def test_two_gateways_at_once(mortal: TritonServer) -> None:
    async with connected(mortal, "left") as one, connected(mortal, "left") as other:
        for client, first in ((one, 1), (other, 2)):
            client.submit(f"r{first}", [first] * 4, 30)
        for client, first in ((one, 1), (other, 2)):
            await client.end_of(f"r{first}")
            assert client.tokens(f"r{first}") == fake_answer([first] * 4, 30)
        assert set(one.deltas) == {"r1"}


# --- bounds


async def test_waiting_is_bounded_in_number_and_in_time(mortal: TritonServer) -> None:
    """In number by the model's queue, in time by the gateway's patience."""
    async with connected(mortal, "narrow", queue_timeout=0.5) as client:
        for name in ("runs", "waits", "waits too", "too many"):
            client.submit(name, [1], 100)
        error = (await client.end_of("too many")).error
        assert error is not None
        assert error.code is ErrorCode.OVERLOADED
        error = (await client.end_of("waits")).error
        assert error is not None
        assert error.code is ErrorCode.QUEUE_TIMEOUT
        assert (await client.end_of("runs")).finish_reason is FinishReason.LENGTH


async def test_a_context_may_be_shorter_here_and_not_longer(mortal: TritonServer) -> None:
    async with connected(mortal, "left", max_model_len=20) as client:
        client.submit("fits", [1] * 15, 50)
        client.submit("does not", [1] * 20, 1)
        assert (await client.end_of("fits")).finish_reason is FinishReason.LENGTH
        assert len(client.tokens("fits")) == 5
        error = (await client.end_of("does not")).error
        assert error is not None
        assert error.code is ErrorCode.INVALID
    with pytest.raises(EngineError, match="max_model_len: 2000000 exceeds its own context of 1000000"):
        build(mortal, "left", max_model_len=2_000_000)


# --- ends


async def test_a_gateway_that_goes_takes_its_requests_along(mortal: TritonServer) -> None:
    async with connected(mortal, "left") as staying:
        async with connected(mortal, "left") as leaving:
            for i in range(5):
                leaving.submit(f"r{i}", [1], ENDLESS)
            await leaving.has_begun("r4")
            await eventually(lambda: staying.relay.snapshot().running == 5)
        await eventually(lambda: staying.relay.snapshot().running == 0)
        for i in range(5):
            assert (await leaving.end_of(f"r{i}")).finish_reason is FinishReason.ERROR
        await staying.is_well_again()


@pytest.mark.parametrize(("model", "number"), [("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)])
async def test_a_dead_or_stopped_process_is_noticed_and_replaced(
    mortal: TritonServer, model: str, number: signal.Signals
) -> None:
    async with connected(mortal, model) as client:
        for i in range(5):
            client.submit(f"r{i}", [i], ENDLESS)
        await client.has_begun("r4")
        (stub,) = mortal.stubs(model)
        os.kill(stub, number)
        errors = [(await client.end_of(f"r{i}")).error for i in range(5)]
        assert {error.code for error in errors if error is not None} == {ErrorCode.ENGINE_FAILED}
        assert all(error is not None and error.retry_after_ms for error in errors)
        await client.is_well_again()
        assert set(mortal.stubs(model)) - {stub}


async def test_an_idle_model_s_death_is_noticed_too(mortal: TritonServer) -> None:
    async with connected(mortal, "killed") as client:
        os.kill(mortal.stubs("killed")[-1], signal.SIGKILL)
        await eventually(lambda: not client.relay.snapshot().ready)
        client.submit("early", [1])
        error = (await client.end_of("early")).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_FAILED
        await client.is_well_again()


async def test_a_failed_step_ends_everything_and_the_model_is_loaded_anew(mortal: TritonServer) -> None:
    async with connected(mortal, "failing") as client:
        client.submit("cut", [1], 100)
        error = (await client.end_of("cut")).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_FAILED
        assert 0 < len(client.tokens("cut")) < 20
        await client.is_well_again()


async def test_an_unload_waits_for_answers_and_not_for_the_session(mortal: TritonServer) -> None:
    async with connected(mortal, "unloaded") as client:
        client.submit("r", [1], 60)
        await client.has_begun("r")
        control(mortal, "unloaded", "unload")
        await eventually(lambda: not client.relay.snapshot().ready)
        client.submit("refused", [1])
        assert (await client.end_of("refused")).error is not None
        assert (await client.end_of("r")).finish_reason is FinishReason.LENGTH
        await eventually(lambda: not mortal.stubs("unloaded"))
        control(mortal, "unloaded", "load")
        await client.is_well_again()


def control(server: TritonServer, model: str, action: str) -> None:
    httpx.post(f"http://{server.http_url}/v2/repository/models/{model}/{action}", timeout=30).raise_for_status()


async def test_what_is_no_message_ends_that_session_alone(mortal: TritonServer) -> None:
    async with connected(mortal, "left") as good, connected(mortal, "left") as bad:
        good.submit("good", [1], 60)
        bad.submit("bad", [1], ENDLESS)
        await bad.has_begun("bad")
        bad.relay._engine.send(b"\0\0\0\1\xc1")
        assert (await bad.end_of("bad")).finish_reason is FinishReason.ERROR
        assert (await good.end_of("good")).finish_reason is FinishReason.LENGTH
        await bad.is_well_again()


def test_a_session_that_nobody_opened(mortal: TritonServer) -> None:
    engine = build(mortal, "left")
    with grpc.insecure_channel(mortal.url) as channel:
        request = engine._request(SessionAction.SAY, 5)
        (answer,) = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]), timeout=30)
    assert "no such session" in answer.error_message


async def test_an_unload_on_purpose_ends_the_session_first(mortal: TritonServer) -> None:
    """And nothing loads it again before it is asked to serve after all."""
    async with connected(mortal, "unloaded") as client:
        engine = client.relay._engine
        await engine.check_unload()
        await engine.unload()
        assert not client.relay.snapshot().ready
        await eventually(lambda: not mortal.stubs("unloaded"))
        control(mortal, "unloaded", "load")
        engine.resume()
        await client.is_well_again()
