"""The batcher for engines that batch inside, with an engine whose pace the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import pytest

from batching.scheduler import SchedulerConfig
from batching.stream_batcher import StreamBatcher
from engines.base import StreamEngine
from engines.fake_tokens import fake_answer
from engines.types import (
    BACKGROUND_PRIORITY,
    Continuation,
    EngineInfo,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    OutputDelta,
)
from tests.fakes import eventually, make_request


class PacedEngine(StreamEngine):
    """Gives a token whenever the test lets it; remembers what it was sent, and with what company."""

    def __init__(self, room: int, max_batch_size: int = 0) -> None:
        self.info = EngineInfo(max_model_len=1000, max_num_seqs=room, vocab_size=256, max_batch_size=max_batch_size)
        self.room = room
        self.paces = asyncio.Event()
        self.paces.set()
        self.sent: list[tuple[str, int]] = []
        self.requests: list[GenerationRequest] = []
        self.open: set[str] = set()
        self.most_open = 0
        self.raises = False

    def capacity(self) -> int:
        return self.room

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def generate(self, request: GenerationRequest, padded_len: int) -> AsyncGenerator[OutputDelta, None]:
        self.sent.append((request.request_id, padded_len))
        self.requests.append(request)
        self.open.add(request.request_id)
        self.most_open = max(self.most_open, len(self.open))
        try:
            for token in fake_answer(request.prompt_token_ids, request.sampling.max_tokens):
                await self.paces.wait()
                await asyncio.sleep(0)
                yield OutputDelta(request.request_id, [token])
                if self.raises:
                    raise RuntimeError("told to")
            yield OutputDelta(request.request_id, finish_reason=FinishReason.LENGTH)
        finally:
            self.open.discard(request.request_id)


class Bench:
    def __init__(self, engine: PacedEngine, config: SchedulerConfig) -> None:
        self.engine = engine
        self.batcher = StreamBatcher(engine, config, 0, self._deliver)
        self.answers: dict[str, list[int]] = {}
        self.first: dict[str, OutputDelta] = {}
        self.ends: dict[str, OutputDelta] = {}

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            assert delta.request_id not in self.ends, "something after the end"
            self.first.setdefault(delta.request_id, delta)
            self.answers.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.ends[delta.request_id] = delta

    def add(self, request_id: str, length: int = 3, patience: float = 600, **options: object) -> None:
        now = time.monotonic()
        prompt = [ord(request_id[0])] * length
        request = make_request(request_id, prompt, arrival=now, deadline=now + patience, **options)  # type: ignore[arg-type]
        self.batcher.add(request)

    def end(self, request_id: str) -> FinishReason | ErrorCode | None:
        """How it ended: for an error, its code."""
        end = self.ends[request_id]
        return end.error.code if end.error else end.finish_reason


@contextlib.asynccontextmanager
async def running(
    room: int = 4, max_batch_size: int = 0, max_queue: int = 100, queue_timeout: float = 60, waste: float = 0.1
) -> AsyncIterator[Bench]:
    engine = PacedEngine(room, max_batch_size)
    bench = Bench(engine, SchedulerConfig(max_queue, queue_timeout, waste))
    task = asyncio.create_task(bench.batcher.run())
    await asyncio.sleep(0)
    try:
        yield bench
        assert not task.done(), "the loop ended"
        bench.batcher.queue.check_integrity()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_everybody_gets_their_own_answer_and_no_more_are_sent_than_there_is_room_for() -> None:
    async with running(room=4) as bench:
        for index in range(20):
            bench.add(f"{chr(65 + index)}", length=index + 1)
        await eventually(lambda: len(bench.ends) == 20)
        assert bench.engine.most_open == 4
        for index in range(20):
            prompt = [65 + index] * (index + 1)
            assert bench.answers[chr(65 + index)] == fake_answer(prompt, 4)
        assert bench.batcher.snapshot().running == bench.batcher.snapshot().waiting == 0
        assert bench.batcher.snapshot().generated_tokens == 80


async def test_what_another_engine_began_is_a_part_of_the_prompt() -> None:
    """The engine here answers a prompt, whatever it is made of; it is asked for what is missing alone."""
    async with running(room=1) as bench:
        bench.engine.info = replace(bench.engine.info, continuation=Continuation.GREEDY)
        now = time.monotonic()
        request = make_request("r", [65] * 9, max_tokens=12, min_tokens=7, arrival=now, deadline=now + 600)
        greedy = replace(request.sampling, temperature=0)
        bench.batcher.add(replace(request, sampling=greedy, output_token_ids=[66, 67, 68]))
        bench.batcher.add(replace(request, request_id="unsuited", output_token_ids=[66]))
        await eventually(lambda: len(bench.ends) == 2)
        (asked,) = bench.engine.requests
        assert (asked.prompt_token_ids, asked.output_token_ids) == ([65] * 9 + [66, 67, 68], [])
        assert (asked.sampling.max_tokens, asked.sampling.min_tokens) == (9, 4)
        assert bench.engine.sent == [("r", 12)]
        assert len(bench.answers["r"]) == 9
        assert bench.end("unsuited") is ErrorCode.INVALID


async def test_the_least_served_account_is_next() -> None:
    async with running(room=1) as bench:
        bench.engine.paces.clear()
        for index in range(3):
            bench.add(f"a{index}", account="a")
        bench.add("b0", account="b")
        bench.engine.paces.set()
        await eventually(lambda: len(bench.ends) == 4)
        assert [request_id for request_id, _ in bench.engine.sent][:2] in (["a0", "b0"], ["b0", "a0"])


async def test_the_wait_is_told_with_the_first_tokens() -> None:
    async with running(room=1) as bench:
        bench.engine.paces.clear()
        bench.add("a")
        bench.add("b")
        await asyncio.sleep(0.05)
        bench.engine.paces.set()
        await eventually(lambda: len(bench.ends) == 2)
        assert bench.first["b"].queue_seconds > bench.first["a"].queue_seconds


async def test_a_full_queue_refuses_and_who_waits_too_long_is_told() -> None:
    async with running(room=1, max_queue=1, queue_timeout=0.2) as bench:
        bench.engine.paces.clear()
        bench.add("a")
        await eventually(lambda: "a" in bench.engine.open)
        bench.add("b")
        bench.add("c")
        assert bench.end("c") is ErrorCode.OVERLOADED
        await eventually(lambda: "b" in bench.ends)
        assert bench.end("b") is ErrorCode.QUEUE_TIMEOUT


async def test_no_answer_goes_beyond_the_context() -> None:
    async with running() as bench:
        bench.add("a", length=990, max_tokens=50)
        await eventually(lambda: "a" in bench.ends)
        assert len(bench.answers["a"]) == 10


async def test_a_malformed_request_is_refused() -> None:
    async with running() as bench:
        bench.add("a", length=1000)
        bench.add("b", max_tokens=0)
        assert {bench.end("a"), bench.end("b")} == {ErrorCode.INVALID}


async def test_an_abort_stops_the_work_or_the_wait() -> None:
    async with running(room=1) as bench:
        bench.engine.paces.clear()
        bench.add("a")
        bench.add("b")
        await eventually(lambda: "a" in bench.engine.open)
        for request_id in ("a", "b", "nobody"):
            bench.batcher.abort(request_id)
        await eventually(lambda: not bench.engine.open and len(bench.ends) == 2)
        assert bench.end("a") is bench.end("b") is FinishReason.ABORT
        assert (bench.ends["a"].computed_tokens, bench.ends["b"].computed_tokens) == (3, 0)
        assert bench.batcher.snapshot().running == 0
        bench.engine.paces.set()
        bench.add("c")
        await eventually(lambda: "c" in bench.ends)


async def test_an_abort_before_its_first_step() -> None:
    async with running() as bench:
        bench.add("a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bench.batcher.abort("a")
        await eventually(lambda: "a" in bench.ends)
        assert bench.end("a") is FinishReason.ABORT
        assert not bench.batcher.snapshot().running


async def test_one_request_s_failure_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as bench:
        bench.engine.raises = True
        bench.add("a")
        await eventually(lambda: "a" in bench.ends)
        assert bench.end("a") is ErrorCode.ENGINE_FAILED
        assert "told to" in caplog.text
        bench.engine.raises = False
        bench.add("b")
        await eventually(lambda: "b" in bench.ends)
        assert bench.end("b") is FinishReason.LENGTH


async def test_while_the_engine_is_away_nobody_waits_for_it() -> None:
    async with running(room=1) as bench:
        bench.engine.paces.clear()
        bench.add("a")
        bench.add("b")
        await eventually(lambda: "a" in bench.engine.open)
        bench.engine.room = 0
        await eventually(lambda: "b" in bench.ends)
        bench.add("c")
        assert bench.end("b") is bench.end("c") is ErrorCode.ENGINE_FAILED
        assert not bench.batcher.snapshot().ready
        assert "a" not in bench.ends, "what becomes of those that were sent is the engine's to say"
        bench.engine.room = 1
        assert bench.batcher.snapshot().ready


# --- without in-flight batching


async def test_whole_batches_are_of_about_one_length() -> None:
    async with running(room=8, max_batch_size=8) as bench:
        bench.engine.paces.clear()
        bench.add("z", length=500)  # alone: it holds the engine while the others come
        await eventually(lambda: "z" in bench.engine.open)
        for index in range(32):
            bench.add(f"{chr(65 + index)}", length=(10, 100, 200, 400)[index % 4])
        await asyncio.sleep(0.05)
        assert len(bench.engine.sent) == 1, "the batch that runs is not joined"
        bench.engine.paces.set()
        await eventually(lambda: len(bench.ends) == 33)
        batches = [bench.engine.sent[1 + 8 * i : 9 + 8 * i] for i in range(4)]
        assert all(len({padded for _, padded in batch}) == 1 for batch in batches)
        assert {batch[0][1] for batch in batches} == {10, 100, 200, 400}
        stats = bench.batcher.snapshot()
        assert (stats.steps, stats.batch_size_sum, stats.padding_cells) == (5, 33, 0)


async def test_those_that_are_sent_together_are_padded_to_the_longest() -> None:
    async with running(room=4, max_batch_size=4, waste=0.2) as bench:
        bench.engine.paces.clear()
        for index, length in enumerate((100, 90, 110, 30)):
            bench.add(chr(65 + index), length=length)
        await asyncio.sleep(0.05)
        assert dict(bench.engine.sent) == {"A": 110, "B": 110, "C": 110}
        bench.engine.paces.set()
        await eventually(lambda: len(bench.ends) == 4)


async def test_an_engine_that_has_its_own_bound_of_padding() -> None:
    engine = PacedEngine(4, 4)
    engine.info = replace(engine.info, max_padding_waste=0.0)
    bench = Bench(engine, SchedulerConfig(max_padding_waste=0.2))
    running_batcher = asyncio.create_task(bench.batcher.run())
    await asyncio.sleep(0)
    for name, length in (("A", 100), ("B", 90), ("C", 100)):
        bench.add(name, length=length)
    await eventually(lambda: len(bench.ends) == 3)
    running_batcher.cancel()
    await asyncio.gather(running_batcher, return_exceptions=True)
    assert engine.sent == [("A", 100), ("C", 100), ("B", 90)]


async def test_the_background_leaves_room() -> None:
    async with running(room=8) as bench:
        bench.engine.paces.clear()
        for number in range(8):
            bench.add(f"batch-{number}", priority=BACKGROUND_PRIORITY)
        await eventually(lambda: len(bench.engine.sent) == 2)
        for number in range(6):
            bench.add(f"urgent-{number}")
        await eventually(lambda: len(bench.engine.sent) == 8)
        assert sum(request_id.startswith("urgent") for request_id, _ in bench.engine.sent) == 6
        bench.engine.paces.set()
        await eventually(lambda: len(bench.ends) == 14)


async def test_the_urgent_do_not_fill_up_with_others() -> None:
    async with running(room=4, max_batch_size=4) as bench:
        bench.engine.paces.clear()
        bench.add("a", priority=1)
        bench.add("b", priority=0)
        await asyncio.sleep(0.05)
        assert [request_id for request_id, _ in bench.engine.sent] == ["b"]
        bench.engine.paces.set()
        await eventually(lambda: len(bench.ends) == 2)
