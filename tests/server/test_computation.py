"""A request's life against a worker on paper: whatever happens to it, and whenever, nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from engines.types import (
    ErrorCode,
    FinishReason,
    OutputDelta,
    RequestError,
)
from quota.levels import Dimension
from server import work as work_module
from server.errors import APIError, DeadlineExceeded, Overloaded, RateLimited
from server.generation import Generation
from server.settings_sections import TimeoutSettings
from server.time_limit import TimeLimit
from tests.server.house import (
    ANSWER,
    NUM_TOKENS,
    PLAN,
    PROMPT,
    House,
    NetworkLedger,
    PaperWorker,
    cancel_after,
    read,
    read_whole,
)


async def fails_with(generation: Generation, kind: type[APIError]) -> APIError:
    with pytest.raises(kind) as caught:
        await read(generation)
    return caught.value


# --- endings


@pytest.mark.parametrize("reader", [read, read_whole])
async def test_a_whole_life(reader: Callable[[Generation], Awaitable[str]]) -> None:
    house = House()
    assert await reader(house.generation()) == ANSWER
    (record,) = house.records
    assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("length", len(PROMPT), NUM_TOKENS)
    assert record.first_token_ms is not None
    await house.check_nothing_left()
    assert not house.worker.aborted


async def test_it_is_settled_before_its_reader_knows_the_end() -> None:
    house = House()
    async with house.generation() as generation:
        await generation.collect()
        assert await house.used(Dimension.CONCURRENT) == 0
        assert await house.used(Dimension.TOKENS_PER_DAY) == len(PROMPT) + NUM_TOKENS
    await house.check_nothing_left()


@pytest.mark.parametrize("reader", [read, read_whole])
@pytest.mark.parametrize("num_prompts", [1, 3])
async def test_cancelled_at_every_step(reader: Callable[[Generation], Awaitable[str]], num_prompts: int) -> None:
    house, turns = House(), 0
    while await cancel_after(turns, reader(house.generation(num_prompts))):
        await house.check_nothing_left()
        assert house.num_charged == sum(house.worker.computed.values())
        turns += 1
    await house.check_nothing_left()
    assert turns > 15  # the reservation, the prompt, the answer, the settlement
    assert {record.outcome for record in house.records} == {"abort", "length"}


async def test_cancelled_twice_at_every_step() -> None:
    house, turns, again = House(), 0, True
    while again:
        task = asyncio.create_task(read(house.generation()))
        for _ in range(turns):
            await asyncio.sleep(0)
        again = task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await house.check_nothing_left()
        turns += 1


async def test_a_request_whose_prompt_was_not_begun_costs_nothing() -> None:
    house = House(PaperWorker(queues=True))
    async with house.generation():
        pass
    assert house.num_charged == 0
    await house.check_nothing_left()


async def test_a_refused_request_holds_nothing_and_writes_no_row() -> None:
    house = House(plan={"account": {"concurrent": 0}})
    with pytest.raises(APIError):
        await read(house.generation())
    house = House(plan={"account": {"concurrent": 1}})
    async with house.generation():
        error = await fails_with(house.generation(), RateLimited)
        assert error.headers["retry-after-ms"]
    assert len(house.records) == 1
    await house.check_nothing_left()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Overloaded("no"), asyncio.CancelledError()])
async def test_a_failure_between_reservation_and_work(error: BaseException) -> None:
    house = House(PaperWorker(raises=error))
    with pytest.raises(type(error)):
        await read(house.generation(2))
    assert house.num_charged == 0
    await house.check_nothing_left()


async def test_no_worker() -> None:
    house = House()
    house.replica.link.client = None
    error = await fails_with(house.generation(), Overloaded)
    assert (error.code, house.records[0].outcome) == ("engine_starting", "engine_starting")
    assert "retry-after-ms" in error.headers
    await house.check_nothing_left()


@pytest.mark.parametrize("num_prompts", [1, 2])
async def test_tokens_that_come_with_the_engines_death_are_delivered_first(num_prompts: int) -> None:
    house = House(PaperWorker(dies_with=[3]))
    texts = [""] * num_prompts
    async with house.generation(num_prompts) as generation:
        while texts[-1] != ANSWER[:4]:
            for piece in await generation.next():
                texts[piece.index] += piece.text
                assert piece.finish_reason is None
        with pytest.raises(Overloaded):
            await generation.next()
        assert not generation.is_done
    assert texts == [ANSWER[:4]] * num_prompts
    assert house.records[0].completion_tokens == 4 * num_prompts
    assert house.records[0].outcome == "engine_failed"
    await house.check_nothing_left()


async def test_an_error_without_tokens_is_no_first_token() -> None:
    house = House()
    async with house.generation() as generation:
        (request_id,) = house.worker.receivers
        error = RequestError(ErrorCode.QUEUE_TIMEOUT, "Too long.", 5)
        house.worker._put(OutputDelta(request_id, finish_reason=FinishReason.ERROR, error=error))
        with pytest.raises(Overloaded):
            await generation.next()
    assert house.records[0].first_token_ms is None
    await house.check_nothing_left()


async def test_a_stop_string_aborts_the_engine() -> None:
    house = House()
    assert await read(house.generation(stop=ANSWER[2:4])) == ANSWER[:2]
    assert house.records[0].outcome == "stop"
    assert house.worker.aborted == ["req-1-0"]
    await house.check_nothing_left()


async def test_a_worker_that_answers_no_abort_is_not_waited_for_once_a_prompt() -> None:
    house = House(PaperWorker(hangs_at=0))
    async with asyncio.timeout(30):  # 64 times the patience would be longer
        async with house.generation(64):
            pass
    await house.check_nothing_left()


async def test_a_ledger_that_fails_at_the_end_costs_nobody_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Away(NetworkLedger):
        async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
            raise ConnectionError("away")

    house = House(ledger=Away())
    assert await read(house.generation()) == ANSWER
    assert house.replica.num_open == house.leases.num_held == 0
    assert len(house.records) == 1
    assert "could not be settled" in caplog.text


# --- time


@pytest.mark.parametrize(("changes", "hangs_at"), [({"first_token": 0.01}, 0), ({"between_tokens": 0.01}, 2)])
async def test_an_engine_without_a_sign_of_life(
    changes: dict[str, float], hangs_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "ABORT_PATIENCE", 0.01)
    house = House(PaperWorker(hangs_at=hangs_at), timeouts=TimeoutSettings(**changes))
    error = await fails_with(house.generation(), Overloaded)
    assert error.code == "engine_timeout"
    assert house.records[0].completion_tokens == hangs_at
    await house.check_nothing_left()


async def test_the_whole_request_may_not_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "ABORT_PATIENCE", 0.01)
    house = House(PaperWorker(hangs_at=2), timeouts=TimeoutSettings(total=0.05))
    assert (await fails_with(house.generation(), DeadlineExceeded)).status == 504
    await house.check_nothing_left()


async def test_a_total_time_holds_for_a_slow_reader_too() -> None:
    house = House(timeouts=TimeoutSettings(total=0.05))
    async with house.generation() as generation:
        await asyncio.sleep(0.06)  # everything has arrived meanwhile
        with pytest.raises(DeadlineExceeded):
            await generation.next()
    await house.check_nothing_left()


async def test_a_clients_patience_is_the_deadline_of_a_whole_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "ABORT_PATIENCE", 0.01)
    house = House(PaperWorker(hangs_at=2))
    with pytest.raises(DeadlineExceeded):
        await read_whole(house.generation(streamed=False, read_timeout=0.02))
    async with house.generation(streamed=True, read_timeout=0.02) as generation:
        while await generation.next(patience=0.1):
            pass  # it ends in an empty list: nothing came, and nothing is wrong yet
    await house.check_nothing_left()


# --- the lease


async def test_a_lease_that_expired_is_asked_for_again() -> None:
    house = House(PaperWorker(hangs_at=2), plan={"account": PLAN["account"] | {"concurrent": 1}})
    async with house.generation() as generation:
        await house.ledger.release(generation.lease_id, generation.account)  # stands for its expiry
        house.ledger._books.clear()
        await house.leases.renew()
        assert len((await house.ledger.usage("acct")).leases) == 1
        assert await generation.next()


async def test_a_lease_whose_place_is_taken_ends_in_an_error() -> None:
    house = House(PaperWorker(hangs_at=2), plan={"account": PLAN["account"] | {"concurrent": 1}})
    async with house.generation() as generation:
        house.ledger._books.clear()
        await house.ledger.reserve("other", "acct", generation.job.layers, 1)
        await house.leases.renew()
        with pytest.raises(RateLimited):
            await generation.next()
        await house.ledger.release("other", "acct")
    assert house.records[0].outcome == "rate_limit_exceeded"


async def test_a_finished_request_is_not_admitted_again() -> None:
    """Its client may read for longer than the ledger remembers its lease."""
    house = House()
    async with house.generation() as generation:
        await generation.collect()
        house.ledger._books.clear()
        await house.leases.renew()
        assert not (await house.ledger.usage("acct")).leases


async def test_a_complete_answer_fails_no_more() -> None:
    house = House()
    async with house.generation() as generation:
        await generation.collect()
        house.leases.fail_all(Overloaded("The server is shutting down."))
        assert generation.is_done
    assert house.records[0].outcome == "length"


async def test_a_failure_from_outside_comes_before_more_tokens() -> None:
    house = House()
    async with house.generation() as generation:
        assert await generation.next()
        house.leases.fail_all(Overloaded("The server is shutting down.", code="shutting_down"))
        with pytest.raises(Overloaded):
            await generation.next()
    assert house.records[0].outcome == "shutting_down"
    await house.check_nothing_left()


async def test_memory_does_not_grow_with_traffic() -> None:
    house = House()
    for round_ in range(20):
        lives = [cancel_after(round_ % 12, read(house.generation())) for _ in range(8)]
        await asyncio.gather(*lives)
    await house.check_nothing_left()
    assert len(asyncio.all_tasks()) == 1


async def test_a_timer_that_is_early_is_no_patience_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's are, by up to a millisecond. An empty answer would begin a stream that can only fail."""
    monkeypatch.setattr(work_module, "ABORT_PATIENCE", 0.01)
    monkeypatch.setattr(TimeLimit, "__call__", lambda limit, seconds, exact=TimeLimit.__call__: exact(limit, 0.01))
    house = House(PaperWorker(hangs_at=0), timeouts=TimeoutSettings(first_token=1))
    async with house.generation() as generation:
        with pytest.raises(Overloaded):
            await generation.next(patience=15)
