"""What clients are told of a response's end is what is stored of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from engines.types import FinishReason, Usage
from server.choice import Piece
from server.errors import Overloaded
from server.responses import recorder as recorder_module
from server.responses.answer import ResponseBuilder
from server.responses.telling import Telling
from server.store.responses import Standing
from tests.server.responses.test_answer import TERMINAL, body
from tests.server.responses.test_recorder import PaperStore, recorder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_EVERY", 0.01)


def telling(store: PaperStore) -> Telling:
    generation: Any = SimpleNamespace(usage=Usage(1, 1, 0))
    return Telling(generation, ResponseBuilder(body()), recorder(store))


def stored(store: PaperStore) -> list[bytes]:
    """Events as the database keeps them: what is written from a number on replaces what was there."""
    events: list[bytes] = []
    for progress in store.written:
        if progress.events:
            events[progress.first :] = progress.events
    return events


async def told(made: Telling, store: PaperStore, *, failures: int = 0, refused: str = "") -> list[bytes]:
    """As streams tell it."""
    await made.begin()
    sent = made.opening() + made.of([Piece(0, "hello", FinishReason.LENGTH)])
    await asyncio.sleep(0.03)
    store.failures, store.refused = failures, refused
    last = made.closing()
    try:
        await made.kept()
    except Overloaded as error:
        last = made.failure(error)
        with contextlib.suppress(Overloaded):
            await made.kept()
    return sent + last


@pytest.mark.parametrize(
    ("failures", "refused", "status"), [(0, "", "incomplete"), (2, "", "incomplete"), (0, "incomplete", "failed")]
)
async def test_a_stream_has_one_end_and_all_numbers_wherever_it_is_read(
    failures: int, refused: str, status: str
) -> None:
    store = PaperStore()
    made = telling(store)
    sent = await told(made, store, failures=failures, refused=refused)
    events = [json.loads(event) for event in sent]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    assert stored(store) == sent
    response = events[-1]["response"]
    assert (response["status"], store.written[-1].status) == (status, status)
    assert (response["error"] is None) == (response["incomplete_details"] is not None) == (status != "failed")
    assert response["output"] == [event["item"] for event in events if event["type"] == "response.output_item.done"]


async def test_nothing_is_told_to_the_store_after_the_end() -> None:
    store = PaperStore()
    made = telling(store)
    sent = await told(made, store)
    made.failure(Overloaded("The client's connection broke."))
    await made.kept()
    assert stored(store) == sent


async def test_one_that_was_deleted_meanwhile_fails_with_all_numbers() -> None:
    store = PaperStore(standing=Standing(is_ours=False))
    made = telling(store)
    events = [json.loads(event) for event in await told(made, store)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[-1]["type"], made.body.status) == ("response.failed", "failed")


async def test_a_client_that_leaves_while_the_end_is_written_does_not_undo_it() -> None:
    store = PaperStore(hold=asyncio.Event())
    made = telling(store)
    async with made:
        await made.begin()
        made.opening()
        await asyncio.sleep(0.03)  # a write is under way
        made.closing()
        leaving = asyncio.create_task(made.kept())
        await asyncio.sleep(0.03)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert store.hold is not None
        store.hold.set()
    assert store.written[-1].status == "completed"


async def test_one_whose_failure_can_t_be_stored_either_ends_all_the_same() -> None:
    store = PaperStore()
    async with telling(store) as made:
        sent = await told(made, store, failures=1000)
    assert json.loads(sent[-1])["type"] == "response.failed"
