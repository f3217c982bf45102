"""A real Triton that is told to unload models, and to load them: whole ones, versions, ensembles."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import EngineError
from engines.types import FinishReason
from tests.engines.triton_bench import ask, build, request, watched
from tests.fakes import eventually
from tests.triton_models import TritonModel
from tests.triton_server import TritonServer, running_triton

pytestmark = pytest.mark.triton

GONE = {"1": "UNAVAILABLE"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models = [TritonModel("m", "vllm", delay_ms=10), TritonModel("two", "vllm", versions=(1, 2), delay_ms=10)]
    models += [TritonModel("steps", "vllm"), TritonModel("ensemble", "vllm", steps=("steps",))]
    yield from running_triton(tmp_path_factory.mktemp("controlled-triton"), models)


async def test_unloaded_on_purpose_it_stays_so(server: TritonServer) -> None:
    """Its process is dead when it happens, which is otherwise cured by a load."""
    async with watched(build(server.url, "m")) as engine:
        assert (await ask(engine, request("hello", 3))).reason is FinishReason.LENGTH
        await engine.check_unload()
        assert engine.capacity()
        (stub,) = server.stubs("m")
        os.kill(stub, signal.SIGKILL)
        await engine.unload()
        assert server.states("m") == GONE
        assert not engine.capacity()
        await engine.unload()  # again: nothing to do
        await asyncio.sleep(1.5)  # a look and more
        assert server.states("m") == GONE
        assert not engine.capacity()
        engine.resume()  # to be looked after again is not to be loaded
        await asyncio.sleep(0.5)
        assert server.states("m") == GONE
        with pytest.raises(EngineError, match="model m: Triton does not serve it"):
            build(server.url, "m")
        again = build(server.url, "m", load=True)
        await eventually(lambda: engine.capacity() > 0)
    async with watched(again):
        assert (await ask(again, request("hello", 3))).reason is FinishReason.LENGTH
    assert server.states("m") == {"1": "READY"}


async def test_an_unload_while_it_is_cured(server: TritonServer) -> None:
    async with watched(build(server.url, "m", load=True)) as engine:
        (stub,) = server.stubs("m")
        os.kill(stub, signal.SIGKILL)
        await eventually(lambda: not engine.capacity())
        await engine.unload()
        await asyncio.sleep(1.5)
        assert server.states("m") == GONE
    build(server.url, "m", load=True)


async def test_a_version_goes_and_comes_without_the_others(server: TritonServer) -> None:
    async with watched(build(server.url, "two", "1")) as first:
        async with watched(build(server.url, "two", "2")) as second:
            running = asyncio.create_task(ask(first, request("hello", 200)))
            await second.unload()
            await eventually(lambda: server.states("two") == {"1": "READY", "2": "UNAVAILABLE"})
            assert not running.done()
            assert (await ask(first, request("hello", 3))).reason is FinishReason.LENGTH
            again = build(server.url, "two", "2", load=True)
        async with watched(again):
            assert (await ask(again, request("hello", 3))).reason is FinishReason.LENGTH
            assert server.states("two") == {"1": "READY", "2": "READY"}
            answer = await running
            assert (answer.reason, len(answer.text)) == (FinishReason.LENGTH, 200)


async def test_the_last_version_is_the_model(server: TritonServer) -> None:
    for version in ("1", "2"):
        async with watched(build(server.url, "two", version)) as engine:
            await engine.unload()
    assert server.states("two") == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    build(server.url, "two", "2", load=True)
    assert server.states("two")["2"] == "READY"


async def test_the_steps_of_an_ensemble_go_with_it(server: TritonServer) -> None:
    server.control("ensemble", "unload")
    server.control("steps", "unload")
    async with watched(build(server.url, "ensemble", load=True)) as engine:
        assert server.states("steps") == {"1": "READY"}
        await engine.unload()
        await eventually(lambda: server.states("steps") == GONE)
    async with watched(build(server.url, "ensemble", load=True)) as engine:
        assert (await ask(engine, request("hello", 3))).reason is FinishReason.LENGTH


def test_a_load_that_is_refused(server: TritonServer) -> None:
    for name, version in (("nobody", ""), ("m", "7")):
        with pytest.raises(EngineError, match=f"model {name}.*: Triton does not serve it") as caught:
            build(server.url, name, version, load=True)
        assert "\n" not in str(caught.value)


async def test_a_triton_that_takes_no_orders(tmp_path: Path) -> None:
    for stubborn in running_triton(tmp_path, [TritonModel("m", "vllm")], explicit_control=False):
        async with watched(build(stubborn.url, "m", load=True)) as engine:
            for step in (engine.check_unload, engine.unload):
                with pytest.raises(EngineError, match="--model-control-mode=explicit"):
                    await step()
            assert engine.capacity()
            assert (await ask(engine, request("hello", 3))).reason is FinishReason.LENGTH
        with pytest.raises(EngineError, match="model nobody: Triton does not serve it"):
            build(stubborn.url, "nobody", load=True)
        stubborn.kill()
        async with watched(engine):
            with pytest.raises(EngineError, match="its Triton does not unload it"):
                await engine.check_unload()
