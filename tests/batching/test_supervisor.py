"""A supervised worker process: it serves, dies, comes back and is stopped."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from batching import child
from batching import supervisor as module
from batching.client import WorkerClient
from batching.protocol import WorkerConfig
from batching.supervisor import WorkerSupervisor
from engines.base import EngineError
from engines.fake_tokens import fake_answer
from engines.types import EngineConfig, ErrorCode, FinishReason, GenerationRequest, OutputDelta
from tests.fakes import eventually, make_request
from tests.penstock_process import is_alive

ENDLESS = 900_000


def ask(request_id: str, prompt: list[int], max_tokens: int) -> GenerationRequest:
    now = time.monotonic()
    return make_request(request_id, prompt, max_tokens=max_tokens, arrival=now, deadline=now + 600)


async def generate(client: WorkerClient, request: GenerationRequest) -> OutputDelta:
    """The whole answer in one delta."""
    receiver, whole = client.submit(request), OutputDelta(request.request_id)
    while whole.finish_reason is None:
        delta = await asyncio.wait_for(receiver.get(), 60)
        whole.token_ids += delta.token_ids
        whole.finish_reason, whole.error = delta.finish_reason, delta.error
    return whole


def supervise(socket_path: str, kind: str = "fake", **options: float) -> WorkerSupervisor:
    times = {name: options.pop(name) for name in ("silence", "step_timeout") if name in options}
    return WorkerSupervisor(WorkerConfig(socket_path, EngineConfig(kind, options=options), **times), "tiny@1")


@contextlib.asynccontextmanager
async def started(socket_path: str, **options: float) -> AsyncIterator[WorkerSupervisor]:
    supervisor = supervise(socket_path, **options)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        pid = supervisor.pid
        await supervisor.stop()
        assert (supervisor.client, supervisor.pid) == (None, None)
        assert pid is None or not exists(f"/proc/{pid}")
        assert not exists(socket_path)


def exists(path: str) -> bool:
    return Path(path).exists()


def connected(supervisor: WorkerSupervisor) -> WorkerClient:
    assert supervisor.client is not None
    return supervisor.client


async def test_it_serves(socket_path):
    async with started(socket_path, steps_in_flight=2) as supervisor:
        assert supervisor.client is not None
        assert supervisor.info.vocab_size == 256
        prompts = {f"r{i}": [i] * (i + 1) for i in range(64)}
        client = connected(supervisor)
        ends = await asyncio.gather(*(generate(client, ask(r, prompt, 50)) for r, prompt in prompts.items()))
        assert {end.request_id: end.token_ids for end in ends} == {
            request_id: fake_answer(prompt, 50) for request_id, prompt in prompts.items()
        }
        assert {end.finish_reason for end in ends} == {FinishReason.LENGTH}


async def test_a_killed_worker_ends_its_requests_and_comes_back(socket_path):
    async with started(socket_path, delay_ms=1) as supervisor:
        for _ in range(2):
            first_pid, client = supervisor.pid, connected(supervisor)
            receivers = [client.submit(ask(f"r{i}-{first_pid}", [i], ENDLESS)) for i in range(10)]
            await asyncio.gather(*(receiver.get() for receiver in receivers))
            os.kill(first_pid, signal.SIGKILL)
            await asyncio.wait_for(client.closed.wait(), 30)
            lasts = [receiver.take() for receiver in receivers]
            assert {last.error.code for last in lasts} == {ErrorCode.ENGINE_FAILED}
            await eventually(lambda client=client: supervisor.client not in (None, client))
            assert supervisor.pid != first_pid
            assert (await generate(connected(supervisor), ask("again", [7], 9))).token_ids == fake_answer([7], 9)
            assert all(receiver.take() is None for receiver in receivers), "a second end"
        assert connected(supervisor).stats.restarts == supervisor.restarts == 2


async def test_a_failed_step_is_a_death_like_any_other(socket_path):
    async with started(socket_path, fail_at_step=6) as supervisor:
        client = connected(supervisor)
        end = await generate(client, ask("r", [1], 50))
        assert end.error.code is ErrorCode.ENGINE_FAILED
        assert end.token_ids == fake_answer([1], 5)[: len(end.token_ids)]
        await eventually(lambda: supervisor.client not in (None, client))
        assert (await generate(connected(supervisor), ask("short", [1], 3))).token_ids == fake_answer([1], 3)


async def test_a_worker_that_stands_still_is_killed_and_comes_back(socket_path):
    async with started(socket_path, silence=3.0) as supervisor:
        first_pid, client = supervisor.pid, connected(supervisor)
        os.kill(first_pid, signal.SIGSTOP)
        end = await generate(client, ask("r", [1], 50))
        assert end.error.code is ErrorCode.ENGINE_FAILED
        await eventually(lambda: supervisor.client not in (None, client))
        assert not is_alive(first_pid)
        assert (await generate(connected(supervisor), ask("short", [1], 3))).token_ids == fake_answer([1], 3)


async def test_a_worker_whose_engine_stands_still_ends_itself_and_comes_back(socket_path):
    async with started(socket_path, step_timeout=0.5, delay_ms=3_600_000) as supervisor:
        client = connected(supervisor)
        end = await generate(client, ask("r", [1], 50))
        assert (end.error.code, end.token_ids) == (ErrorCode.ENGINE_FAILED, [])
        assert not client.hangs
        await eventually(lambda: supervisor.client not in (None, client))


async def test_stopping_ends_open_requests(socket_path):
    async with started(socket_path, delay_ms=1) as supervisor:
        receiver = connected(supervisor).submit(ask("r", [1], ENDLESS))
        await receiver.get()
        await supervisor.stop()
        assert (await receiver.get()).error.code is ErrorCode.ENGINE_FAILED


async def test_stopping_while_the_worker_is_down(socket_path, monkeypatch):
    async with started(socket_path) as supervisor:
        monkeypatch.setattr(supervisor, "_spawn", asyncio.Event().wait)  # it never comes back
        os.kill(supervisor.pid, signal.SIGKILL)
        await eventually(lambda: supervisor.client is None)
        assert supervisor.client is None


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [("steam", {}, "engine: expected one of "), ("fake", {"vocab": -1}, "options.vocab: expected an integer >= 0")],
)
async def test_a_wrong_configuration_is_told_in_one_line(socket_path, kind, options, reason):
    supervisor = supervise(socket_path, kind, **options)
    with pytest.raises(EngineError) as caught:
        await supervisor.start()
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)
    assert supervisor.pid is None
    await supervisor.stop()


async def test_a_socket_path_that_is_too_long_is_named():
    path = "/tmp/" + "x" * 120  # noqa: S108
    with pytest.raises(EngineError, match=f"can't listen at {path}: AF_UNIX path too long"):
        await supervise(path).start()


async def test_a_start_that_is_cancelled_leaves_no_process(socket_path, monkeypatch):
    supervisor = supervise(socket_path)
    monkeypatch.setattr(supervisor, "_serves", lambda started: asyncio.Event().wait())
    starting = asyncio.create_task(supervisor.start())
    await eventually(lambda: exists(socket_path))
    pid = supervisor.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not exists(f"/proc/{pid}")
    assert not exists(socket_path)


async def test_a_worker_that_does_not_listen_to_us_is_killed(socket_path, monkeypatch):
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.05)
    async with started(socket_path) as supervisor:
        pid = supervisor.pid
        os.kill(pid, signal.SIGSTOP)
    assert not is_alive(pid)


async def test_failed_starts_are_repeated_later_and_later(socket_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    failures = [EngineError("no"), OSError("no"), ValueError("no"), *[EngineError("no")] * 8, None]
    delays: list[float] = []

    async def spawn() -> None:
        if (failure := failures.pop(0)) is not None:
            raise failure

    async def sleep(delay: float) -> None:
        delays.append(delay)

    supervisor = supervise(socket_path)
    monkeypatch.setattr(supervisor, "_spawn", spawn)
    monkeypatch.setattr(child.asyncio, "sleep", sleep)
    assert await supervisor._restart(0) == 12
    assert supervisor.restarts == 12
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 5]


async def test_one_that_is_to_go_is_not_started_again(socket_path, monkeypatch):
    spawned: list[bool] = []

    async def spawn() -> None:
        spawned.append(True)

    supervisor = supervise(socket_path)
    monkeypatch.setattr(supervisor, "_spawn", spawn)
    supervisor.let_restart(False)
    restarting = asyncio.create_task(supervisor._restart(0))
    await asyncio.sleep(0.05)
    assert not spawned
    supervisor.let_restart(True)
    await asyncio.wait_for(restarting, 30)
    assert spawned
    supervisor.let_restart(False)
    await supervisor.start()
    assert await asyncio.wait_for(supervisor._restart(0), 30) == 1
    supervisor._watching.cancel()


async def test_a_long_life_is_forgiven(socket_path, monkeypatch):
    """The second of two quick deaths has to wait; one after long service doesn't."""
    supervisor, asked, deaths = supervise(socket_path), [], [asyncio.Event() for _ in range(4)]

    async def restart(failures: int) -> int:
        asked.append(failures)
        supervisor.client = SimpleNamespace(closed=deaths[len(asked)], hangs=False)
        return failures + 1

    supervisor.client = SimpleNamespace(closed=deaths[0], hangs=False)
    monkeypatch.setattr(supervisor, "_restart", restart)
    watching = asyncio.create_task(supervisor._watch())
    for number, stable_after in enumerate([3600.0, 3600.0, -1.0]):
        monkeypatch.setattr(child, "STABLE_AFTER", stable_after)
        deaths[number].set()
        await eventually(lambda number=number: len(asked) == number + 1)
    watching.cancel()
    assert asked == [0, 1, 0]


async def test_stopping_while_a_dead_worker_is_cleared_away(socket_path, monkeypatch):
    """Its process hangs, and the watch is waiting for it when it is told to stop."""
    async with started(socket_path) as supervisor:
        os.kill(supervisor.pid, signal.SIGSTOP)
        connected(supervisor)._writer.close()
        await eventually(lambda: supervisor.client is None)
        await asyncio.sleep(0)
        monkeypatch.setattr(supervisor, "_stop_timeout", 0.05)


def test_the_worker_is_not_told_our_secrets(socket_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "s3cret-s3cret-s3cret")
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://:s3cret@host")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    environment = supervise(socket_path)._environment()
    assert "s3cret" not in repr(environment)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "passive")


async def test_a_restart_holds_what_the_first_start_promised(socket_path):
    async with started(socket_path) as supervisor:
        assert supervisor.config.engine.max_model_len == supervisor.info.max_model_len
