"""The worker: its conversation with gateways in this process, its life as a process."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from batching import switchboard, worker
from batching.batcher import Batcher
from batching.client import Receiver, WorkerClient
from batching.protocol import Abort, Started, Submit, WorkerConfig, frame
from batching.scheduler import Scheduler, SchedulerConfig
from batching.worker import Worker, listen
from engines.base import EngineError
from engines.fake import FakeEngine
from engines.fake_tokens import fake_answer
from engines.types import EngineConfig, ErrorCode, FinishReason, GenerationRequest, OutputDelta
from tests.fakes import eventually, make_request

ENDLESS = 900_000


def ask(request_id: str, prompt: list[int], max_tokens: int) -> GenerationRequest:
    now = time.monotonic()
    return make_request(request_id, prompt, max_tokens=max_tokens, arrival=now, deadline=now + 600)


async def read_to_end(receiver: Receiver) -> OutputDelta:
    """Everything in one delta."""
    whole = OutputDelta(receiver.request_id)
    while whole.finish_reason is None:
        delta = await asyncio.wait_for(receiver.get(), 60)
        whole.token_ids += delta.token_ids
        whole.finish_reason, whole.error = delta.finish_reason, delta.error
    return whole


class Serving:
    """A worker in this process."""

    def __init__(self, socket_path: str, **options: float) -> None:
        self.socket_path = socket_path
        self.engine = FakeEngine(EngineConfig("fake", options=options))
        self.scheduler = Scheduler(self.engine.info, SchedulerConfig(queue_timeout=60))
        self.worker = Worker(lambda deliver: Batcher(self.engine, self.scheduler, deliver))
        self.task = asyncio.create_task(self.worker.serve(listen(socket_path)))

    async def connect(self) -> WorkerClient:
        return await WorkerClient.connect(self.socket_path)


@contextlib.asynccontextmanager
async def serving(socket_path: str, **options: float) -> AsyncIterator[Serving]:
    served = Serving(socket_path, **options)
    try:
        yield served
        assert not served.task.done(), "the worker ended"
    finally:
        served.task.cancel()
        await asyncio.gather(served.task, return_exceptions=True)
        served.engine.close()


# --- with gateways


async def test_each_gateway_gets_its_own_answers(socket_path):
    async with serving(socket_path) as served:
        clients = [await served.connect() for _ in range(3)]
        prompts = {f"r{i}": [i] * (i + 1) for i in range(30)}
        receivers = [clients[i % 3].submit(ask(f"r{i}", prompts[f"r{i}"], 10)) for i in range(30)]
        answers = {r.request_id: (await read_to_end(r)).token_ids for r in receivers}
        assert answers == {request_id: fake_answer(prompt, 10) for request_id, prompt in prompts.items()}
        assert not served.worker._owners
        for client in clients:
            await client.close()


async def test_a_gateway_that_leaves_takes_only_its_own_requests_along(socket_path):
    async with serving(socket_path, delay_ms=1) as served:
        leaving, staying = await served.connect(), await served.connect()
        gone = [leaving.submit(ask(f"gone{i}", [i], ENDLESS)) for i in range(5)]
        kept = staying.submit(ask("kept", [9], 60))
        await asyncio.gather(*(receiver.get() for receiver in gone))
        await leaving.close()
        await eventually(lambda: set(served.worker._owners) <= {"kept"})
        served.scheduler.check_integrity()
        assert (await read_to_end(kept)).token_ids == fake_answer([9], 60)
        assert len(served.worker._gateways) == 1
        await staying.close()
        await eventually(lambda: not served.worker._gateways)


async def test_an_abort_ends_the_work(socket_path):
    async with serving(socket_path, delay_ms=1) as served:
        client = await served.connect()
        receiver = client.submit(ask("r", [1, 2, 3], ENDLESS))
        await receiver.get()
        client.abort("r")
        assert (await read_to_end(receiver)).finish_reason is FinishReason.ABORT
        assert not served.scheduler.has_work
        await client.close()


async def test_nobody_aborts_or_takes_over_the_request_of_another(socket_path):
    async with serving(socket_path, delay_ms=1) as served:
        owner, thief = await served.connect(), await served.connect()
        receiver = owner.submit(ask("r", [1], 80))
        first = await receiver.get()
        thief._writer.write(frame(Abort("r")))
        thief._writer.write(frame(Submit(ask("r", [2], 5))))
        await asyncio.wait_for(thief.closed.wait(), 30)
        assert first.token_ids + (await read_to_end(receiver)).token_ids == fake_answer([1], 80)
        await owner.close()


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 1) + b"\xc1", struct.pack(">I", 3) + b"\x92\xa1x", b"\0\0"]
)
async def test_noise_closes_the_connection_and_nothing_else(socket_path, noise, caplog):
    async with serving(socket_path) as served:
        good = await served.connect()
        reader, writer = await asyncio.open_unix_connection(socket_path)
        writer.write(noise)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert (await read_to_end(good.submit(ask("r", [1], 5)))).token_ids == fake_answer([1], 5)
        await good.close()
    assert "never retrieved" not in caplog.text


async def test_a_request_that_makes_no_sense_is_refused_alone(socket_path):
    async with serving(socket_path) as served:
        client = await served.connect()
        bad = [client.submit(ask(f"bad{i}", prompt, tokens)) for i, (prompt, tokens) in enumerate(NONSENSE)]
        good = client.submit(ask("good", [1], 5))
        for receiver in bad:
            assert (await read_to_end(receiver)).error.code is ErrorCode.INVALID
        assert (await read_to_end(good)).token_ids == fake_answer([1], 5)
        await client.close()


NONSENSE = [([], 5), ([-1], 5), ([256], 5), ([2**62], 5), ([1], 0), ([1], -1)]


async def test_a_gateway_that_stops_reading_stalls_nobody_and_is_cut(socket_path, monkeypatch):
    monkeypatch.setattr(worker, "MAX_UNSENT_BYTES", 50_000)
    async with serving(socket_path) as served:
        _, deaf = await asyncio.open_unix_connection(socket_path, limit=1024)
        for number in range(50):
            deaf.write(frame(Submit(ask(f"deaf{number}", [number], ENDLESS))))
        client = await served.connect()
        assert (await read_to_end(client.submit(ask("r", [1], 200)))).token_ids == fake_answer([1], 200)
        await eventually(lambda: not served.worker._owners)
        assert len(served.worker._gateways) == 1
        deaf.close()
        await client.close()


async def test_statistics_reach_every_gateway(socket_path, monkeypatch):
    monkeypatch.setattr(switchboard, "STATS_INTERVAL", 0.005)
    async with serving(socket_path, delay_ms=1) as served:
        clients = [await served.connect() for _ in range(2)]
        receiver = clients[0].submit(ask("r", [1] * 70, 40))
        await receiver.get()
        await eventually(lambda: all(client.stats.running == 1 for client in clients))
        await read_to_end(receiver)
        await eventually(lambda: all(client.stats.generated_tokens == 40 for client in clients))
        stats = clients[1].stats
        assert (stats.running, stats.kv_blocks_used, stats.prefill_tokens) == (0, 0, 70)
        assert stats.steps == sum(stats.batch_size_buckets) == 40
        for client in clients:
            await client.close()


async def test_a_failed_step_ends_the_worker(socket_path):
    served = Serving(socket_path, fail_at_step=3)
    client = await served.connect()
    receiver = client.submit(ask("r", [1], 50))
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await asyncio.wait_for(served.task, 30)
    served.engine.close()
    for gateway in served.worker._gateways:
        gateway.close()
    assert (await read_to_end(receiver)).error.code is ErrorCode.ENGINE_FAILED


# --- the socket


def test_only_our_user_may_connect(socket_path):
    with listen(socket_path):
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


def test_what_another_worker_left_is_replaced(socket_path):
    listen(socket_path).close()
    listen(socket_path).close()


@pytest.mark.parametrize("path", ["/tmp/" + "x" * 120, "/no/such/folder/w.sock"])  # noqa: S108
def test_a_path_that_can_not_be_listened_at_is_named(path):
    with pytest.raises(EngineError, match=r"can't listen at /.*: "):
        listen(path)


# --- as a process


class Process:
    """A worker without a supervisor. `prelude` is run in it first."""

    def __init__(self, config: WorkerConfig, prelude: str = "") -> None:
        code = f"{prelude}\nfrom batching import worker\nworker.main()"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe)
        self.stdin.write(msgspec.json.encode(config) + b"\n")
        self.stdin.flush()

    @property
    def stdin(self):
        assert self.process.stdin is not None
        return self.process.stdin

    def read_started(self) -> Started:
        assert self.process.stdout is not None
        return msgspec.json.decode(self.process.stdout.readline(), type=Started)

    def wait(self) -> int:
        return self.process.wait(timeout=30)

    def log(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(config: WorkerConfig, prelude: str = "") -> Process:
        started.append(Process(config, prelude))
        return started[-1]

    yield start
    for one in started:
        with one.process:
            one.process.kill()


def fake_config(socket_path: str, **options: float) -> WorkerConfig:
    return WorkerConfig(socket_path, EngineConfig("fake", options=options))


def test_it_ends_with_its_input_and_leaves_nothing(start, socket_path):
    process = start(fake_config(socket_path))
    assert process.read_started().info.vocab_size == 256
    process.stdin.close()
    assert process.wait() == 0
    assert not Path(socket_path).exists()
    assert process.log() == ""


def test_it_ends_with_its_input_even_while_it_loads(start, socket_path):
    prelude = (
        "import time, sys; from engines import registry\n"
        "def load(config): print('loading', file=sys.stderr, flush=True); time.sleep(3600)\n"
        "registry.FACTORIES['fake'] = load"
    )
    process = start(fake_config(socket_path), prelude)
    assert process.process.stderr.readline() == b"loading\n"
    process.stdin.close()
    assert process.wait() == 0


def test_signals_are_not_for_it(start, socket_path):
    process = start(fake_config(socket_path))
    process.read_started()
    for number in (signal.SIGINT, signal.SIGTERM):
        process.process.send_signal(number)
    assert asyncio.run(answer_of(socket_path)) == fake_answer([5], 3)
    assert process.process.poll() is None
    process.stdin.close()
    assert process.wait() == 0


async def answer_of(socket_path: str) -> list[int]:
    client = await WorkerClient.connect(socket_path)
    whole = await read_to_end(client.submit(ask("r", [5], 3)))
    await client.close()
    return whole.token_ids


def test_what_a_library_prints_is_not_taken_for_its_answer(start, socket_path):
    prelude = (
        "from engines import fake, registry\n"
        "def load(config): print('Loading weights...', flush=True); return fake.FakeEngine(config)\n"
        "registry.FACTORIES['fake'] = load"
    )
    process = start(fake_config(socket_path), prelude)
    assert process.read_started().error == ""
    process.stdin.close()
    assert process.wait() == 0
    assert "Loading weights..." in process.log()


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (EngineConfig("steam"), "engine: expected one of "),
        (EngineConfig("fake", options={"dealy_ms": 1}), "options.dealy_ms: "),
    ],
)
def test_it_says_why_it_can_not_start(start, engine, reason, socket_path):
    process = start(WorkerConfig(socket_path, engine))
    started = process.read_started()
    assert started.info is None
    assert started.error.startswith(reason)
    assert process.wait() == worker.EXIT_CANNOT_START
    assert not Path(socket_path).exists()


def test_a_failed_step_ends_the_process(start, socket_path):
    process = start(fake_config(socket_path, fail_at_step=1))
    process.read_started()
    assert asyncio.run(answer_of(socket_path)) == []
    assert process.wait() == worker.EXIT_FAILED
    assert "options.fail_at_step" in process.log()
    assert not Path(socket_path).exists()


# --- with its parent

PARENT = """
import asyncio, json, sys
from batching.protocol import WorkerConfig
from batching.supervisor import WorkerSupervisor
from engines.types import EngineConfig

async def main():
    supervisor = WorkerSupervisor(WorkerConfig(sys.argv[1], EngineConfig("fake")), "m")
    await supervisor.start()
    print(json.dumps(supervisor.pid), flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_the_death_of_the_parent_ends_it(socket_path):
    with subprocess.Popen([sys.executable, "-c", PARENT, socket_path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = json.loads(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    asyncio.run(eventually(lambda: not is_running(pid)))
    assert not Path(socket_path).exists()


def is_running(pid: int) -> bool:
    """A dead process whose parent has not asked for its status yet is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
