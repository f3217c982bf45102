"""The relay with a worker on paper at the other end: what it says there, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import pytest

from batching.protocol import PROTOCOL, Abort, Deltas, Stats, Submit, frame, messages_in, to_worker
from batching.relay import Relay, RelayConfig
from batching.scheduler import SchedulerConfig
from batching.stats import WorkerStats
from engines.base import EngineError, RemoteEngine
from engines.types import ErrorCode, FinishReason, GenerationRequest, OutputDelta, RequestError
from tests.fakes import eventually, make_info, make_request

MAX_QUEUE, QUEUE_TIMEOUT = 2, 30.0


class PaperRemote(RemoteEngine):
    """A session for every queue that is put into `sessions`; what is put into that comes out, and None ends it."""

    def __init__(self, protocol: str = PROTOCOL) -> None:
        self.info = make_info(max_model_len=20, max_num_seqs=1)
        self.protocol = protocol
        self.ready = True
        self.said: list[object] = []
        self.hung_up = False
        self.sessions: asyncio.Queue[asyncio.Queue[bytes | None]] = asyncio.Queue()

    async def watch(self) -> None:
        await asyncio.Event().wait()

    @property
    def is_ready(self) -> bool:
        return self.ready

    async def session(self) -> AsyncGenerator[bytes, None]:
        frames = await self.sessions.get()
        while (data := await frames.get()) is not None:
            yield data

    def send(self, frames: bytes) -> None:
        self.said += messages_in(frames, to_worker)

    def hang_up(self) -> None:
        self.hung_up = True

    async def check_unload(self) -> None: ...

    async def unload(self) -> None: ...

    def resume(self) -> None: ...


@dataclass
class Bench:
    remote: PaperRemote
    relay: Relay
    session: asyncio.Queue[bytes | None]
    got: list[OutputDelta] = field(default_factory=list)
    num_starts: int = 0

    def started(self) -> None:
        self.num_starts += 1

    def answer(self, *deltas: OutputDelta) -> None:
        self.session.put_nowait(frame(Deltas(list(deltas))))

    def open(self) -> None:
        self.session = asyncio.Queue()
        self.session.put_nowait(frame(Stats(WorkerStats(running=3))))
        self.remote.sessions.put_nowait(self.session)

    async def is_ready(self) -> None:
        await eventually(lambda: self.relay.snapshot().ready)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    remote = PaperRemote()
    made: Bench
    config = RelayConfig(SchedulerConfig(MAX_QUEUE, QUEUE_TIMEOUT), 4, lambda: made.started())
    made = Bench(remote, Relay(remote, config, lambda deltas: made.got.extend(deltas)), asyncio.Queue())
    running = asyncio.create_task(made.relay.run())
    made.open()
    await made.is_ready()
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def ask(request_id: str = "r", **fields: object) -> GenerationRequest:
    now = time.monotonic()
    return make_request(request_id, **({"arrival": now, "deadline": now + 600} | fields))  # type: ignore[arg-type]


async def test_requests_go_there_and_deltas_come_back(bench: Bench) -> None:
    bench.relay.add(ask("r"))
    bench.answer(OutputDelta("r", [5]), OutputDelta("stranger", [6]))
    bench.answer(OutputDelta("r", [7], FinishReason.LENGTH))
    await eventually(lambda: len(bench.got) == 2)
    assert [delta.token_ids for delta in bench.got] == [[5], [7]]
    (submitted,) = bench.remote.said
    assert isinstance(submitted, Submit)
    assert submitted.request.prompt_token_ids == [1, 2, 3]


async def test_nothing_follows_a_last_delta(bench: Bench) -> None:
    """And the session goes on."""
    for request_id in ("r", "other"):
        bench.relay.add(ask(request_id))
    bench.answer(OutputDelta("r", [5], FinishReason.STOP), OutputDelta("r", [6], FinishReason.STOP))
    bench.answer(OutputDelta("other", [7], FinishReason.STOP))
    await eventually(lambda: len(bench.got) == 2)
    assert [delta.token_ids for delta in bench.got] == [[5], [7]]


async def test_times_are_told_in_seconds_from_now(bench: Bench) -> None:
    """And a request waits there no longer than here."""
    now = time.monotonic()
    bench.relay.add(ask("r", arrival=now - 5))
    (submitted,) = bench.remote.said
    assert isinstance(submitted, Submit)
    assert -6 < submitted.request.arrival <= -5
    assert QUEUE_TIMEOUT - 6 < submitted.request.deadline <= QUEUE_TIMEOUT - 5


@pytest.mark.parametrize(
    ("deadline", "code"), [(600.0, ErrorCode.QUEUE_TIMEOUT), (-1.0, ErrorCode.DEADLINE)], ids=["patience", "deadline"]
)
async def test_whose_time_ran_out(bench: Bench, deadline: float, code: ErrorCode) -> None:
    bench.relay.add(ask("r", deadline=time.monotonic() + deadline))
    error = RequestError(ErrorCode.DEADLINE, "The request's time ran out while it was waiting.")
    bench.answer(OutputDelta("r", finish_reason=FinishReason.ERROR, error=error))
    await eventually(lambda: bool(bench.got))
    assert bench.got[0].error is not None
    assert bench.got[0].error.code is code


async def test_what_can_t_be_run_is_refused_here(bench: Bench) -> None:
    bench.relay.add(ask("long", prompt=[1] * 20))
    for i in range(4):
        bench.relay.add(ask(f"r{i}"))
    errors = {delta.request_id: delta.error.code for delta in bench.got if delta.error is not None}
    assert errors == {"long": ErrorCode.INVALID, "r3": ErrorCode.OVERLOADED}, "one runs, two wait"
    bench.relay.add(ask("r4"))
    assert len(bench.remote.said) == 3


async def test_an_answer_ends_with_our_context(bench: Bench) -> None:
    bench.relay.add(ask("r", prompt=[1] * 15, max_tokens=50))
    (submitted,) = bench.remote.said
    assert isinstance(submitted, Submit)
    assert submitted.request.sampling.max_tokens == 5


async def test_only_what_is_open_is_aborted(bench: Bench) -> None:
    bench.relay.add(ask("r"))
    for request_id in ("r", "stranger"):
        bench.relay.abort(request_id)
    assert bench.remote.said[1:] == [Abort("r")]


async def test_the_end_of_a_session_is_that_of_its_requests(bench: Bench) -> None:
    bench.relay.add(ask("a"))
    bench.relay.add(ask("b"))
    bench.session.put_nowait(None)
    await eventually(lambda: len(bench.got) == 2)
    assert {delta.error.code for delta in bench.got if delta.error is not None} == {ErrorCode.ENGINE_FAILED}
    bench.relay.add(ask("meanwhile"))
    assert bench.got[-1].error is not None
    assert (bench.relay.snapshot().ready, bench.relay.snapshot().running) == (False, 0)
    bench.open()
    await bench.is_ready()
    bench.relay.add(ask("later"))
    bench.answer(OutputDelta("later", [1], FinishReason.STOP))
    await eventually(lambda: bench.got[-1].request_id == "later")
    assert bench.num_starts == 1


async def test_what_is_no_message_ends_the_session(bench: Bench) -> None:
    bench.relay.add(ask("r"))
    bench.session.put_nowait(b"\0\0\0\1\xc1")
    await eventually(lambda: bool(bench.got))
    assert bench.got[0].finish_reason is FinishReason.ERROR


async def test_an_idle_session_with_a_model_that_takes_no_requests_is_ended(bench: Bench) -> None:
    bench.relay.add(ask("r"))
    bench.remote.ready = False
    await asyncio.sleep(0.25)
    assert not bench.remote.hung_up, "it has a request"
    bench.answer(OutputDelta("r", [1], FinishReason.STOP))
    await eventually(lambda: bench.remote.hung_up)


async def test_the_other_worker_s_figures(bench: Bench) -> None:
    stats = bench.relay.snapshot()
    assert (stats.running, stats.restarts, stats.ready) == (3, 4, True)
    bench.remote.ready = False
    assert not bench.relay.snapshot().ready


def test_another_version_over_there() -> None:
    with pytest.raises(EngineError, match=f"another version.*is x, ours {PROTOCOL}"):
        Relay(PaperRemote("x"), RelayConfig(SchedulerConfig(), 0, lambda: None), lambda deltas: None)
