"""Plans and limits through the admin API: what is set, where it holds, and what is refused by its path."""

import asyncio
from datetime import datetime
from typing import Any

import httpx
import pytest

from quota.levels import FEATURES, Dimension
from server.plans import PlanBook
from server.store.records import KeyKind
from tests.server.conftest import API, Connect, Services, check_error, check_ok

PLANS = "/admin/v1/plans"
LIMITS = "/admin/v1/accounts/default/limits"
TABLES = {
    "account": {"rpm": 60, "tpm": 9000, "shadow": ["tpm"]},
    "key": {"concurrent": 4},
    "models": {"big@1": {"tpm": 500}, "not-loaded-yet": {"rpm": 1}},
    "features": {"tools": {"requests_per_day": 10}},
}
BAD_TABLES = [
    ({"account": {"rpm": -1}}, "account.rpm", "expected an integer >= 0, got -1"),
    ({"account": {"rpm": "5"}}, "account.rpm", 'expected an integer >= 0, got "5"'),
    ({"key": {"rpn": 1}}, "key.rpn", "unknown limit, expected one of " + ", ".join(Dimension)),
    ({"account": {"tpm": 1}}, "account.tpm", "expected 0 (nothing is admitted) or at least 2"),
    ({"account": {"rpm": 5, "shadow": ["tpm"]}}, "account.shadow", '"tpm" is no limit of account.'),
    ({"account": {"rpm": 5, "shadow": "rpm"}}, "account.shadow", "expected a list of limits"),
    ({"features": {"juggling": {}}}, "features.juggling", "unknown feature, expected one of " + sorted(FEATURES)[0]),
    ({"models": {"big@1": {"rpm": -1}}}, 'models."big@1".rpm', "expected an integer >= 0, got -1"),
    ({"models": {"big": 5}}, "models.big", "expected a table of limits, got 5"),
    ({"models": {"": {}}}, "models.", "at least 1 character"),
    ({"account": 5}, "account", "object"),
    ({"modles": {}}, "modles", "Unsupported parameter"),
]


async def test_a_plan_is_set_read_and_replaced(client: httpx.AsyncClient) -> None:
    made = check_ok(await client.put(f"{PLANS}/silver", json=TABLES))
    assert {key: made[key] for key in TABLES} == TABLES
    assert (made["object"], made["name"], made["source"]) == ("plan", "silver", "database")
    assert datetime.fromisoformat(made["updated_at"]).tzinfo is not None
    assert check_ok(await client.get(f"{PLANS}/silver")) == made
    changed = check_ok(await client.put(f"{PLANS}/silver", json={"key": {"rpm": 1}}))
    assert (changed["account"], changed["key"], changed["models"]) == ({}, {"rpm": 1}, {})
    listed = check_ok(await client.get(PLANS))
    assert [(plan["name"], plan["source"]) for plan in listed["data"]] == [
        ("default", "file"),
        ("gold", "file"),
        ("silver", "database"),
    ]
    assert (listed["object"], listed["has_more"]) == ("list", False)


async def test_a_plan_holds_at_once_and_elsewhere_at_the_next_look(
    client: httpx.AsyncClient, services: Services
) -> None:
    other = PlanBook({"default": services.plans.get("default")}, services.store.plans)
    check_ok(await client.put(f"{PLANS}/silver", json=TABLES))
    assert services.plans.get("silver").account.rpm == 60
    await other.refresh()
    assert other.get("silver") == services.plans.get("silver")


@pytest.mark.parametrize(("body", "path", "expected"), BAD_TABLES)
@pytest.mark.parametrize("url", [f"{PLANS}/silver", LIMITS])
async def test_a_bad_table_is_refused_by_its_path(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], path: str, expected: str
) -> None:
    error = check_error(await client.put(url, json=body), 400)
    assert error["param"] == path
    assert path in error["message"]
    assert expected in error["message"]
    assert "\n" not in error["message"]
    assert [plan["name"] for plan in check_ok(await client.get(PLANS))["data"]] == ["default", "gold"]
    assert check_ok(await client.get(LIMITS))["overrides"] == {}


@pytest.mark.parametrize("name", ["a" * 65, "%00", "a%0ab", "%7f"])
async def test_a_bad_name_is_refused(client: httpx.AsyncClient, name: str) -> None:
    for method in ("PUT", "DELETE"):
        assert check_error(await client.request(method, f"{PLANS}/{name}", json={}), 400)["param"] == "name"


async def test_the_files_plan_comes_back(client: httpx.AsyncClient, services: Services) -> None:
    """With accounts that use it, and also the default one."""
    await services.store.accounts.create("acme", "gold")
    for name in ("gold", "default"):
        before = check_ok(await client.get(f"{PLANS}/{name}"))
        check_ok(await client.put(f"{PLANS}/{name}", json={"account": {"rpm": 1}}))
        assert services.plans.get(name).account.rpm == 1
        deleted = check_ok(await client.delete(f"{PLANS}/{name}"))
        assert deleted == {"object": "plan", "name": name, "deleted": True, "in_force": before}
        assert check_ok(await client.get(f"{PLANS}/{name}")) == before


async def test_a_plan_in_use_does_not_vanish(client: httpx.AsyncClient) -> None:
    check_ok(await client.put(f"{PLANS}/silver", json=TABLES))
    check_ok(await client.post("/admin/v1/accounts", json={"name": "acme", "plan": "silver"}))
    assert "1" in check_error(await client.delete(f"{PLANS}/silver"), 409)["message"]
    check_ok(await client.get(f"{PLANS}/silver"))
    check_ok(await client.patch("/admin/v1/accounts/acme", json={"plan": "gold"}))
    assert check_ok(await client.delete(f"{PLANS}/silver"))["in_force"] is None
    check_error(await client.get(f"{PLANS}/silver"), 404)
    check_error(await client.delete(f"{PLANS}/silver"), 404)


@pytest.mark.parametrize("name", ["default", "gold"])
async def test_a_plan_of_the_file_alone_can_not_be_deleted(client: httpx.AsyncClient, name: str) -> None:
    assert check_error(await client.delete(f"{PLANS}/{name}"), 409)["param"] == "name"


async def test_a_plan_that_can_not_be_read_can_be_deleted(client: httpx.AsyncClient, services: Services) -> None:
    await services.store.plans.put("odd", {"colour": {}})
    check_error(await client.get(f"{PLANS}/odd"), 404)
    check_ok(await client.delete(f"{PLANS}/odd"))
    assert await services.store.plans.all() == []


async def test_an_account_takes_a_plan_that_another_gateway_made(client: httpx.AsyncClient, services: Services) -> None:
    await services.store.plans.put("silver", TABLES)
    assert check_ok(await client.post("/admin/v1/accounts", json={"name": "acme", "plan": "silver"}))["name"] == "acme"
    check_error(await client.post("/admin/v1/accounts", json={"name": "other", "plan": "bronze"}), 400)


async def test_limits_are_set_as_a_whole_and_removed(client: httpx.AsyncClient) -> None:
    check_ok(await client.patch("/admin/v1/accounts/default", json={"overrides": {"account": {"rpm": 1}}}))
    changed = check_ok(await client.put(LIMITS, json=TABLES))
    assert changed["overrides"] == TABLES
    assert changed["effective"]["account"] == {"rpm": 60, "tpm": 9000, "concurrent": 256, "shadow": ["tpm"]}
    assert (changed["account"], changed["plan"]) == ("default", "default")
    again = check_ok(await client.get(LIMITS))
    assert [again[field] for field in ("overrides", "effective")] == [changed["overrides"], changed["effective"]]
    assert check_ok(await client.get("/admin/v1/accounts/default"))["overrides"] == TABLES
    removed = check_ok(await client.delete(LIMITS))
    assert removed["overrides"] == {}
    assert removed["effective"] == {"account": {"rpm": 6000, "tpm": 10_000_000, "concurrent": 256}}


async def test_limits_hold_for_the_next_request(client: httpx.AsyncClient, connect: Connect) -> None:
    async with connect(API) as user:
        assert (await user.get("/v1/usage")).headers["x-ratelimit-limit-requests"] == "6000"
        check_ok(await client.put(LIMITS, json={"account": {"rpm": 7}}))
        assert (await user.get("/v1/usage")).headers["x-ratelimit-limit-requests"] == "7"


async def test_limits_tell_how_they_stand(client: httpx.AsyncClient, services: Services) -> None:
    check_ok(await client.put(LIMITS, json=TABLES))
    (key,) = await services.store.keys.list((await services.store.accounts.ensure("default")).id)
    layers = services.plans.effective("default", TABLES).layers(key.id, "big", "1", {"tools"})
    await services.ledger.reserve("r1", key.account_id, layers, 300)
    rows = check_ok(await client.get(LIMITS))["limits"]
    shown = [tuple(row[field] for field in ("level", "name", "dimension", "limit", "used", "shadow")) for row in rows]
    tokens = next(row["used"] for row in rows if row["level"] == "account" and row["dimension"] == "tpm")
    assert 0 < tokens <= 300  # it leaks while we look
    assert shown == [
        ("account", "", "rpm", 60, 1, False),
        ("account", "", "tpm", 9000, tokens, True),
        ("account", "", "concurrent", 256, 1, False),
        ("key", key.id, "concurrent", 4, 1, False),
        ("model", "big@1", "tpm", 500, shown[4][4], False),
        ("model", "not-loaded-yet", "rpm", 1, 0, False),
        ("feature", "tools", "requests_per_day", 10, 1, False),
    ]
    assert [row["reset_ms"] is None for row in rows] == [False, False, True, True, False, False, False]


async def test_only_valid_keys_have_limits(client: httpx.AsyncClient) -> None:
    check_ok(await client.put(LIMITS, json={"key": {"rpm": 5}}))
    mine = check_ok(await client.post("/admin/v1/keys", json={"account": "default", "limits": {"rpm": 2}}))
    gone = check_ok(await client.post("/admin/v1/keys", json={"account": "default"}))
    check_ok(await client.delete(f"/admin/v1/keys/{gone['id']}"))
    rows = check_ok(await client.get(LIMITS))["limits"]
    limits = {row["name"]: row["limit"] for row in rows if row["level"] == "key"}
    assert (limits.pop(mine["id"]), list(limits.values())) == (2, [5])


async def test_limits_of_nobody(client: httpx.AsyncClient) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = await client.request(method, "/admin/v1/accounts/nobody/limits", json={})
        assert check_error(answer, 404)["param"] == "account"


async def test_stored_overrides_that_can_not_be_read_are_shown_and_leave_the_plan(
    client: httpx.AsyncClient, connect: Connect, services: Services
) -> None:
    account = await services.store.accounts.ensure("default")
    await services.store.accounts.update(account.id, overrides={"account": {"rpm": -1}})
    shown = check_ok(await client.get(LIMITS))
    assert shown["overrides"] == {"account": {"rpm": -1}}
    assert shown["effective"]["account"]["rpm"] == 6000
    async with connect(API) as user:
        assert (await user.get("/v1/usage")).headers["x-ratelimit-limit-requests"] == "6000"


async def test_administrators_that_work_at_once(client: httpx.AsyncClient) -> None:
    bodies = [{"account": {"rpm": number}} for number in range(1, 9)]
    answers = await asyncio.gather(*(client.put(f"{PLANS}/silver", json=body) for body in bodies))
    assert [check_ok(answer)["account"] for answer in answers] == [body["account"] for body in bodies]
    assert check_ok(await client.get(f"{PLANS}/silver"))["account"] in [body["account"] for body in bodies]


async def test_an_administrators_key_has_no_usage_of_its_own(client: httpx.AsyncClient) -> None:
    made = check_ok(await client.post("/admin/v1/keys", json={"kind": KeyKind.ADMIN}))
    assert made["account"] == "admin"
    check_error(await client.get("/v1/usage"), 403)
