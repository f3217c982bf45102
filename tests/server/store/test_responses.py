"""Responses as they are kept, over each database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.store import Store
from server.store.errors import TooMuch
from server.store.records import utc_now
from server.store.responses import Opening, Progress, Standing, StoredResponse

ACCOUNT, OWNER = "acct", "gateway-1"


def response(response_id: str, parent: str | None = None, **fields: Any) -> StoredResponse:
    now = utc_now().replace(microsecond=0)
    made = StoredResponse(
        id=response_id,
        account_id=ACCOUNT,
        parent_id=parent,
        status="in_progress",
        is_background=True,
        body='{"n": "\\u0000 漢"}',
        created_at=now,
        expires_at=now + timedelta(days=1),
        owner=OWNER,
        lease_until=now + timedelta(minutes=1),
    )
    return replace(made, **fields)


def item(item_id: str) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "text": f"of {item_id} \x00 漢"}


def items(*item_ids: str) -> list[dict[str, Any]]:
    return [item(item_id) for item_id in item_ids]


def news(made: StoredResponse, **fields: Any) -> Progress:
    return Progress(**{
        "response_id": made.id, "account_id": made.account_id, "owner": made.owner, "status": made.status,
        "lease_until": made.lease_until, **fields,
    })  # fmt: skip


async def put(store: Store, made: StoredResponse, inputs: tuple[str, ...] = (), output: tuple[str, ...] = ()) -> None:
    progress = news(made, opening=Opening(made, items(*inputs)), output=items(*output))
    assert await store.responses.write([progress]) == [Standing(is_ours=True)]


async def test_it_is_written_read_advanced_and_deleted(store: Store) -> None:
    made = response("resp_1")
    await put(store, made, ("a",))
    assert await store.responses.get(ACCOUNT, "resp_1") == made
    ended = news(made, status="completed", lease_until=None, body="{}", output=items("b"), first=0, events=[b"e0"])
    await store.responses.write([ended])
    stored = await store.responses.get(ACCOUNT, "resp_1")
    assert stored == replace(made, status="completed", lease_until=None, body="{}")
    assert await store.responses.conversation(ACCOUNT, "resp_1", 10_000) == items("a", "b")
    assert await store.responses.delete(ACCOUNT, "resp_1") is True
    assert await store.responses.delete(ACCOUNT, "resp_1") is False
    assert await store.responses.get(ACCOUNT, "resp_1") is None
    assert await store.responses.events_after("resp_1", -1) == []
    assert await store.responses.items(ACCOUNT, ["a", "b"]) == {}


async def test_another_account_sees_and_does_nothing(store: Store) -> None:
    await put(store, response("resp_1"), ("a",))
    assert await store.responses.get("other", "resp_1") is None
    assert await store.responses.conversation("other", "resp_1", 10_000) is None
    assert await store.responses.inputs("other", "resp_1") == []
    assert await store.responses.items("other", ["a"]) == {}
    assert await store.responses.delete("other", "resp_1") is False
    await store.responses.request_cancel("other", "resp_1")
    stored = await store.responses.get(ACCOUNT, "resp_1")
    assert stored is not None
    assert stored.cancel_requested is False


async def test_the_same_news_may_be_written_again(store: Store) -> None:
    made = response("resp_1")
    first = news(made, opening=Opening(made, items("a")), first=0, events=[b"0", b"1"])
    second = news(made, first=2, events=[b"2"], output=items("b"))
    for progress in (first, first, second, second, second):
        assert await store.responses.write([progress]) == [Standing(is_ours=True)]
    assert await store.responses.events_after("resp_1", -1) == [b"0", b"1", b"2"]
    assert await store.responses.conversation(ACCOUNT, "resp_1", 10_000) == items("a", "b")


@pytest.mark.parametrize("after", range(-1, 6))
async def test_events_after_one_of_them(store: Store, after: int) -> None:
    made = response("resp_1")
    await put(store, made)
    for first, events in ((0, [b"0", b"1"]), (2, [b"2"]), (3, [b"3", b"4"])):
        await store.responses.write([news(made, first=first, events=events)])
    assert await store.responses.events_after("resp_1", after) == [b"0", b"1", b"2", b"3", b"4"][after + 1 :]


async def test_events_of_so_many_rows(store: Store) -> None:
    made = response("resp_1")
    await put(store, made)
    for first in range(0, 6, 2):
        await store.responses.write([news(made, first=first, events=[b"%d" % first, b"%d" % (first + 1)])])
    assert await store.responses.events_after("resp_1", 0, 2) == [b"1", b"2", b"3"]


async def test_a_conversation_is_all_before_it_and_broken_by_a_deletion(store: Store) -> None:
    await put(store, response("r1"), ("a",), ("b",))
    await put(store, response("r2", "r1"), ("c", "d"), ("e",))
    await put(store, response("r3", "r2"), ("f",))
    assert await store.responses.conversation(ACCOUNT, "r3", 10_000) == items("a", "b", "c", "d", "e", "f")
    assert await store.responses.conversation(ACCOUNT, "r2", 10_000) == items("a", "b", "c", "d", "e")
    await store.responses.delete(ACCOUNT, "r1")
    assert await store.responses.conversation(ACCOUNT, "r3", 10_000) is None


async def test_a_conversation_is_read_up_to_a_size(store: Store) -> None:
    await put(store, response("r1"), ("a",))
    await put(store, response("r2", "r1"), output=("b",))
    size = sum(len(json.dumps(one)) for one in items("a", "b"))
    assert await store.responses.conversation(ACCOUNT, "r2", size) == items("a", "b")
    with pytest.raises(TooMuch):
        await store.responses.conversation(ACCOUNT, "r2", size - 1)
    await put(store, response("empty"))
    assert await store.responses.conversation(ACCOUNT, "empty", 0) == []


async def test_a_conversation_never_goes_on_with_another_account_s(store: Store) -> None:
    await put(store, response("r1", account_id="other"), ("a",))
    await put(store, response("r2", "r1"), ("b",))
    assert await store.responses.conversation(ACCOUNT, "r2", 10_000) is None


async def test_pages_of_the_input(store: Store) -> None:
    await put(store, response("r1"), ("a", "b", "c"), ("d",))
    page = store.responses.inputs
    assert await page(ACCOUNT, "r1") == items("a", "b", "c")
    assert await page(ACCOUNT, "r1", limit=2) == items("a", "b")
    assert await page(ACCOUNT, "r1", after="a") == items("b", "c")
    assert await page(ACCOUNT, "r1", descending=True) == items("c", "b", "a")
    assert await page(ACCOUNT, "r1", after="b", descending=True) == items("a")
    assert await page(ACCOUNT, "r1", after="d") is None


async def test_items_by_id(store: Store) -> None:
    await put(store, response("r1"), ("a",), ("b",))
    assert await store.responses.items(ACCOUNT, ["a", "b", "c"]) == {"a": item("a"), "b": item("b")}


async def test_a_request_to_cancel_is_seen_with_the_next_write(store: Store) -> None:
    made = response("r1")
    await put(store, made)
    await store.responses.request_cancel(ACCOUNT, "r1")
    assert await store.responses.write([news(made)]) == [Standing(is_ours=True, is_cancelled=True)]


async def test_one_that_was_deleted_is_nobody_s(store: Store) -> None:
    made = response("r1")
    await put(store, made)
    await store.responses.delete(ACCOUNT, "r1")
    late = news(made, first=0, events=[b"0"], output=items("a"))
    assert await store.responses.write([late]) == [Standing(is_ours=False)]
    assert await store.responses.events_after("r1", -1) == []


async def test_an_abandoned_one_is_taken_over_once(store: Store) -> None:
    now = utc_now()
    dead = response("dead", lease_until=now - timedelta(seconds=1))
    await put(store, dead)
    await put(store, response("alive"))
    await put(store, response("ended", status="completed", lease_until=None))
    (found,) = await store.responses.abandoned(now)
    assert found.id == "dead"
    until = now + timedelta(seconds=8)
    taken = [await store.responses.take_over(found, owner, now, until) for owner in ("gateway-2", "gateway-3")]
    assert taken == [True, False]
    assert await store.responses.write([news(dead)]) == [Standing(is_ours=False)], "its first gateway is back"
    assert await store.responses.write([news(dead, owner="gateway-2")]) == [Standing(is_ours=True)]


async def test_one_whose_gateway_is_back_in_time_is_not_taken_over(store: Store) -> None:
    now = utc_now()
    made = response("r1", lease_until=now - timedelta(seconds=1))
    await put(store, made)
    await store.responses.write([news(made, lease_until=now + timedelta(seconds=8))])
    assert await store.responses.take_over(made, "gateway-2", now, now) is False


async def test_expired_ones_are_removed_in_bites(store: Store) -> None:
    now = utc_now()

    async def expired(response_id: str, expires_at: datetime, **fields: Any) -> None:
        ended: dict[str, Any] = {"status": "completed", "lease_until": None}
        await put(store, response(response_id, expires_at=expires_at, **(ended | fields)), ("a",))

    for number in range(5):
        await expired(f"old{number}", now - timedelta(hours=number + 1))
    await expired("new", now + timedelta(hours=1))
    await expired("running", now - timedelta(hours=1), status="in_progress", lease_until=now)
    assert [await store.responses.remove_expired(now, 3) for _ in range(3)] == [3, 2, 0]
    assert await store.responses.get(ACCOUNT, "new") is not None
    assert await store.responses.get(ACCOUNT, "running") is not None
