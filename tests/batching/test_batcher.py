"""The batcher with the fake engine in this process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from batching.batcher import Batcher
from batching.scheduler import Scheduler, SchedulerConfig
from engines.fake import FakeEngine
from engines.fake_tokens import fake_answer
from engines.types import EngineConfig, ErrorCode, FinishReason, OutputDelta
from tests.fakes import eventually, make_request


class Bench:
    """A running batcher and what it has delivered."""

    def __init__(self, **options: float) -> None:
        config = SchedulerConfig(queue_timeout=options.pop("queue_timeout", 60.0))
        max_num_seqs = int(options.pop("max_num_seqs", 64))
        self.engine = FakeEngine(EngineConfig("fake", "", max_num_seqs=max_num_seqs, options=options))
        self.scheduler = Scheduler(self.engine.info, config)
        self.batcher = Batcher(self.engine, self.scheduler, self._deliver)
        self.deliveries: list[list[OutputDelta]] = []
        self.answers: dict[str, list[int]] = {}
        self.ends: dict[str, OutputDelta] = {}

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        self.deliveries.append(deltas)
        for delta in deltas:
            assert delta.request_id not in self.ends
            self.answers.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.ends[delta.request_id] = delta

    def add(self, request_id: str, prompt: list[int], **options: float) -> None:
        now = time.monotonic()
        deadline = now + options.pop("patience", 600)
        self.batcher.add(make_request(request_id, prompt, arrival=now, deadline=deadline, **options))


@contextlib.asynccontextmanager
async def running(**options: float) -> AsyncIterator[Bench]:
    bench = Bench(**options)
    task = asyncio.create_task(bench.batcher.run())
    try:
        yield bench
        assert not task.done(), "the loop ended"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        bench.engine.close()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
async def test_many_requests_each_get_their_own_answer(steps_in_flight):
    async with running(steps_in_flight=steps_in_flight) as bench:
        prompts = {f"r{i}": [i] * (1 + 7 * i) for i in range(64)}
        for request_id, prompt in prompts.items():
            bench.add(request_id, prompt, max_tokens=20)
        await eventually(lambda: len(bench.ends) == 64)
        assert bench.answers == {request_id: fake_answer(prompt, 20) for request_id, prompt in prompts.items()}
        assert len(bench.deliveries) < 40, "one delivery a step, with everything in it"


async def test_it_wakes_from_idleness():
    async with running() as bench:
        for number in range(3):
            await asyncio.sleep(0.02)
            bench.add(f"r{number}", [number], max_tokens=2)
            await eventually(lambda number=number: f"r{number}" in bench.ends)
        steps = bench.scheduler.stats.steps
        await asyncio.sleep(0.05)
        assert bench.scheduler.stats.steps == steps, "an idle batcher runs no steps"


async def test_an_abort_is_answered_at_once_and_frees_the_space():
    async with running(delay_ms=5, steps_in_flight=2) as bench:
        bench.add("leaves", [1] * 100, max_tokens=1_000_000 - 100)
        await eventually(lambda: len(bench.answers.get("leaves", [])) > 3)
        bench.batcher.abort("leaves")
        assert bench.ends["leaves"].finish_reason is FinishReason.ABORT
        assert bench.scheduler.pool.num_used == 0
        bench.batcher.abort("leaves")
        bench.add("next", [2], max_tokens=2)
        await eventually(lambda: "next" in bench.ends)
        await eventually(lambda: not bench.batcher._in_flight)
        assert not bench.engine._known.keys() - {1}, "the engine was told"


async def test_a_request_that_can_not_run_is_answered():
    async with running() as bench:
        bench.add("empty", [])
        assert bench.ends["empty"].error.code is ErrorCode.INVALID


async def test_who_waits_too_long_is_told_while_others_run():
    async with running(delay_ms=2, max_num_seqs=1) as bench:
        bench.add("long", [1], max_tokens=100_000)
        await eventually(lambda: "long" in bench.answers)
        bench.add("hurried", [2], patience=0.02)
        await eventually(lambda: "hurried" in bench.ends)
        assert bench.ends["hurried"].error.code is ErrorCode.DEADLINE
        bench.batcher.abort("long")


async def test_a_failed_step_ends_the_loop():
    bench = Bench(fail_at_step=3)
    bench.add("r", [1], max_tokens=50)
    with pytest.raises(RuntimeError, match="fail_at_step"):
        await bench.batcher.run()
    assert len(bench.answers["r"]) == 2
    bench.engine.close()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
async def test_out_of_memory_the_batch_is_halved_and_everybody_is_served(steps_in_flight):
    async with running(steps_in_flight=steps_in_flight, max_rows=3) as bench:
        prompts = {f"r{i}": [i] * (1 + 7 * i) for i in range(16)}
        for request_id, prompt in prompts.items():
            bench.add(request_id, prompt, max_tokens=20)
        await eventually(lambda: len(bench.ends) == 16)
        assert bench.answers == {request_id: fake_answer(prompt, 20) for request_id, prompt in prompts.items()}
        assert {end.finish_reason for end in bench.ends.values()} == {FinishReason.LENGTH}
        assert bench.scheduler.stats.out_of_memory >= 3  # 16, 8, 4
        assert bench.scheduler.snapshot().preemptions >= 13
        bench.scheduler.check_integrity()


async def test_whom_even_the_smallest_step_has_no_memory_for_is_told_and_nobody_else():
    async with running(steps_in_flight=2) as bench:
        compute = bench.engine._compute

        def starved(item, known, result):
            if known.prompt[0] == 7:
                raise MemoryError
            compute(item, known, result)

        bench.engine._compute = starved
        for i in range(5, 9):
            bench.add(f"r{i}", [i] * 100, max_tokens=20)
        await eventually(lambda: len(bench.ends) == 4)
        assert bench.ends["r7"].error.code is ErrorCode.ENGINE_FAILED
        assert [end for end, delta in bench.ends.items() if delta.error is None] == ["r5", "r6", "r8"]
        assert all(bench.answers[f"r{i}"] == fake_answer([i] * 100, 20) for i in (5, 6, 8))
        bench.add("next", [2], max_tokens=2)
        await eventually(lambda: "next" in bench.ends)


async def test_ending_it_in_the_middle_of_a_step_leaves_the_engine_sound():
    bench = Bench(delay_ms=20, steps_in_flight=2)
    bench.add("r", [1], max_tokens=50)
    task: asyncio.Task[None] = asyncio.create_task(bench.batcher.run())
    await eventually(lambda: "r" in bench.answers)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    alive: Callable[[], bool] = bench.engine._thread.is_alive
    assert alive()
    bench.engine.close()
    assert not alive()
