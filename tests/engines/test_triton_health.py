"""A real Triton whose server or models die, stop, or are taken away: nobody waits for ever, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from engines.triton.engine import TritonEngine
from engines.types import ErrorCode, FinishReason
from tests.engines.triton_bench import Answer, ask, build, request, watched
from tests.fakes import eventually
from tests.triton_models import TritonModel
from tests.triton_server import TritonServer, running_triton

pytestmark = pytest.mark.triton

ENDLESS = 4000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models = [TritonModel(name, "vllm", delay_ms=20) for name in ("killed", "stopped", "kept", "unloaded")]
    models += [TritonModel("steps", "vllm", delay_ms=20), TritonModel("ensemble", "vllm", steps=("steps",))]
    yield from running_triton(tmp_path_factory.mktemp("mortal-triton"), models)


@dataclass
class Patient:
    """An engine, and one long answer that is under way on it."""

    engine: TritonEngine
    answer: asyncio.Task[Answer]

    async def is_cut_short(self) -> None:
        answer = await asyncio.wait_for(self.answer, 30)
        assert answer.reason is FinishReason.ERROR
        assert answer.error is not None
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert answer.error.retry_after_ms

    async def is_well_again(self) -> None:
        await eventually(lambda: self.engine.capacity() > 0, 60)
        assert (await ask(self.engine, request("hello", 3))).reason is FinishReason.LENGTH


@contextlib.asynccontextmanager
async def patient(server: TritonServer, model: str, **config: object) -> AsyncIterator[Patient]:
    async with watched(build(server.url, model, **config)) as engine:
        first = asyncio.Event()
        answer = asyncio.create_task(_read(engine, first.set))
        await asyncio.wait_for(first.wait(), 30)
        yield Patient(engine, answer)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def _read(engine: TritonEngine, started: Callable[[], None]) -> Answer:
    answer = Answer()
    async for delta in engine.generate(request("hello", ENDLESS), 5):
        answer.take(delta)
        started()
    return answer


@pytest.mark.parametrize(
    ("model", "number"), [("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP), ("ensemble", signal.SIGKILL)]
)
async def test_a_dead_or_stopped_process_is_noticed_and_replaced(
    server: TritonServer, model: str, number: signal.Signals
) -> None:
    """Triton gives no sign of it: the stream just hangs, and the model stays ready."""
    name = "steps" if model == "ensemble" else model
    async with patient(server, model) as one:
        (stub,) = server.stubs(name)
        os.kill(stub, number)
        await one.is_cut_short()
        await one.is_well_again()
        assert set(server.stubs(name)) - {stub}


async def test_nothing_is_reloaded_against_the_operator_s_will(server: TritonServer) -> None:
    async with patient(server, "kept", options={"reload": False}) as one:
        (stub,) = server.stubs("kept")
        os.kill(stub, signal.SIGKILL)
        await one.is_cut_short()
        await asyncio.sleep(1.5)
        assert not one.engine.capacity()


async def test_a_model_that_is_unloaded_ends_its_streams_and_takes_no_more(server: TritonServer) -> None:
    async with watched(build(server.url, "unloaded")) as engine:
        running = asyncio.create_task(ask(engine, request("hello", 100)))
        await asyncio.sleep(0.2)
        server.control("unloaded", "unload")
        await eventually(lambda: not engine.capacity())
        answer = await asyncio.wait_for(running, 30)
        assert (answer.reason, len(answer.text)) == (FinishReason.LENGTH, 100)
        server.control("unloaded", "load")
        await eventually(lambda: engine.capacity() > 0)
        assert (await ask(engine, request("hello", 3))).reason is FinishReason.LENGTH


async def test_a_stopped_server(server: TritonServer) -> None:
    async with patient(server, "killed") as one:
        server.signal(signal.SIGSTOP)
        try:
            await one.is_cut_short()
            assert not one.engine.capacity()
        finally:
            server.signal(signal.SIGCONT)
        await one.is_well_again()


async def test_a_killed_server_and_its_successor(server: TritonServer) -> None:
    async with patient(server, "killed") as one:
        server.kill()
        await one.is_cut_short()
        await eventually(lambda: not one.engine.capacity())
        server.start()
        await one.is_well_again()
