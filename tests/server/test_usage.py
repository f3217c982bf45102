"""`/v1/usage`: one's own account, and nobody else's."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from quota.ledger import AccountUsage, LedgerUnavailable
from server.store.records import Account, UsageRecord, utc_now
from tests.server.conftest import API, Connect, Services, check_error, check_ok


@pytest.fixture
async def account(services: Services) -> Account:
    return await services.store.accounts.ensure("default")


@pytest.fixture
async def user(connect: Connect) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(API) as opened:
        yield opened


def record(request_id: str, account: Account, **changes: Any) -> UsageRecord:
    made = UsageRecord(
        request_id=request_id,
        account_id=account.id,
        key_id="k1",
        model="big",
        version="1",
        endpoint="/v1/chat/completions",
        features=frozenset({"chat", "stream"}),
        prompt_tokens=10,
        cached_tokens=2,
        completion_tokens=5,
        started_at=utc_now(),
        queue_ms=0,
        first_token_ms=1,
        total_ms=2,
        outcome="stop",
    )
    return replace(made, **changes)


async def test_usage_is_that_of_ones_own_account(user: httpx.AsyncClient, account: Account, services: Services) -> None:
    other = await services.store.accounts.create("acme")
    yesterday = utc_now() - timedelta(days=1)
    rows = [record("1", account), record("2", account, key_id="k2", model="small", started_at=yesterday)]
    await services.store.usage.add([*rows, record("3", other, prompt_tokens=1000)])

    async def ask(**params: str) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = check_ok(await user.get("/v1/usage", params=params))["data"]
        return data

    by_model = await ask()
    assert by_model[0] == {
        "object": "usage",
        "key_id": None,
        "model": "big",
        "version": "1",
        "feature": None,
        "day": None,
        "requests": 1,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 5,
        "replayed_prompt_tokens": 0,
        "replayed_completion_tokens": 0,
    }
    assert [row["model"] for row in by_model] == ["big", "small"]
    today = str(rows[0].day)
    assert [(row["key_id"], row["day"]) for row in await ask(group_by="key,day", since=today)] == [("k1", today)]
    assert [row["key_id"] for row in await ask(group_by="key", until=str(yesterday.date()))] == ["k2"]
    assert [(row["feature"], row["requests"]) for row in await ask(group_by="feature")] == [("chat", 2), ("stream", 2)]


async def test_an_answer_says_whose_it_is_and_whether_there_is_more(
    user: httpx.AsyncClient, account: Account, services: Services
) -> None:
    await services.store.usage.add([record("1", account), record("2", account, model="small")])
    answer = check_ok(await user.get("/v1/usage", params={"limit": "1"}))
    assert (answer["object"], answer["account"], answer["plan"]) == ("list", "default", "default")
    assert (len(answer["data"]), answer["has_more"]) == (1, True)
    assert check_ok(await user.get("/v1/usage", params={"limit": "2"}))["has_more"] is False


async def test_limits_are_the_accounts_and_this_keys(
    user: httpx.AsyncClient, client: httpx.AsyncClient, account: Account, services: Services
) -> None:
    tables = {"account": {"tokens_per_day": 100}, "key": {"rpm": 5}, "models": {"big": {"concurrent": 2}}}
    check_ok(await client.put("/admin/v1/plans/silver", json=tables))
    check_ok(await client.patch("/admin/v1/accounts/default", json={"plan": "silver"}))
    check_ok(await client.post("/admin/v1/keys", json={"account": "default"}))
    mine = (await services.store.keys.list(account.id))[0].id
    layers = services.plans.get("silver").layers(mine, "big", "1", ())
    await services.ledger.reserve("r1", account.id, layers, 30)
    answer = await user.get("/v1/usage")
    rows = check_ok(answer)["limits"]
    fields = ("level", "name", "dimension", "limit", "used", "remaining", "shadow")
    assert [tuple(row[field] for field in fields) for row in rows] == [
        ("account", "", "tokens_per_day", 100, 30, 70, False),
        ("key", mine, "rpm", 5, 1, 4, False),
        ("model", "big", "concurrent", 2, 1, 1, False),
    ]
    assert answer.headers["x-ratelimit-remaining-tokens"] == "70"
    assert answer.headers["x-ratelimit-limit-requests"] == "5"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"group_by": "account"}, "group_by"),
        ({"group_by": "key,key"}, "group_by"),
        ({"account": "acme"}, "account"),
        ({"since": "yesterday"}, "since"),
        ({"limit": "0"}, "limit"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_bad_query_is_refused_by_name(user: httpx.AsyncClient, params: dict[str, str], param: str) -> None:
    answer = await user.get("/v1/usage", params=params)
    assert param in check_error(answer, 400)["param"]
    assert answer.headers["x-ratelimit-limit-requests"] == "6000"


async def test_a_ledger_that_is_away_is_a_503(
    user: httpx.AsyncClient, client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object, account: str) -> AccountUsage:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(type(services.ledger), "usage", away)
    for answer in (await user.get("/v1/usage"), await client.get("/admin/v1/accounts/default/limits")):
        assert check_error(answer, 503)["code"] == "quota_unavailable"
        assert int(answer.headers["retry-after-ms"]) > 0
