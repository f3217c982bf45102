"""What becomes known of a request for its spans, whoever answers it."""

from __future__ import annotations

from server.failover import Outcome
from tests.server.cache.conftest import house_with_cache
from tests.server.house import ANSWER, House, PaperWorker, read


async def test_an_answer_that_went_on_elsewhere() -> None:
    house = House(PaperWorker(dies_with=[2]), others=(PaperWorker(),))
    assert await read(house.generation(sampling={"temperature": 0})) == ANSWER
    (timeline,) = house.timelines
    (failure,) = timeline.failures
    assert (failure.outcome, failure.choice, failure.num_tokens) == (Outcome.CONTINUED, 0, 3)
    assert timeline.first_token is not None
    assert timeline.first_token <= failure.at <= timeline.ended
    assert timeline.is_complete
    assert [phase.name for phase in timeline.phases()] == ["prepare", "queue", "prefill", "decode"]


async def test_one_that_nothing_happened_to() -> None:
    house = House()
    await read(house.generation())
    (timeline,) = house.timelines
    assert not timeline.failures


async def test_one_that_left_in_the_queue() -> None:
    house = House(PaperWorker(queues=True))
    async with house.generation() as generation:
        await generation.next(0)
    (timeline,) = house.timelines
    assert not timeline.is_complete
    assert [phase.name for phase in timeline.phases()] == ["prepare", "queue"]


async def test_a_recorded_answer_has_no_phases() -> None:
    house = house_with_cache()
    for _ in range(2):
        await read(house.generation(sampling={"temperature": 0}))
    computed, replayed = house.timelines
    assert [record.cache for record in house.records] == ["miss", "hit"]
    assert list(computed.phases())
    assert not list(replayed.phases())
    assert replayed.ended >= replayed.arrival
