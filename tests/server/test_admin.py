import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from server import keys
from server.routes import admin, admin_plans
from server.store.credentials import issue_key
from server.store.keys import KeySpec
from server.store.records import KeyKind, UsageRecord, utc_now
from tests.server.conftest import ADMIN, API, PEPPER, Connect, Services, check_error


async def _post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/admin/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


ROUTES = [
    ("POST", "/admin/v1/accounts"),
    ("GET", "/admin/v1/accounts"),
    ("GET", "/admin/v1/accounts/default"),
    ("PATCH", "/admin/v1/accounts/default"),
    ("POST", "/admin/v1/keys"),
    ("GET", "/admin/v1/keys"),
    ("GET", "/admin/v1/keys/x"),
    ("DELETE", "/admin/v1/keys/x"),
    ("POST", "/admin/v1/keys/x/revoke"),
    ("GET", "/admin/v1/usage"),
    ("GET", "/admin/v1/plans"),
    ("GET", "/admin/v1/plans/gold"),
    ("PUT", "/admin/v1/plans/gold"),
    ("DELETE", "/admin/v1/plans/gold"),
    ("GET", "/admin/v1/accounts/default/limits"),
    ("PUT", "/admin/v1/accounts/default/limits"),
    ("DELETE", "/admin/v1/accounts/default/limits"),
]

WITH_BODY = [route for route in ROUTES if route[0] in {"POST", "PUT", "PATCH"} and not route[1].endswith("revoke")]


def test_every_route_is_in_the_list() -> None:
    routers = (admin.router, admin_plans.router)
    routes = [route for router in routers for route in router.routes if hasattr(route, "methods")]
    assert len(routes) == len(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_authentication_comes_before_everything(connect: Connect, method: str, path: str) -> None:
    """Also before the body: garbage is not told about its body."""
    for key, status in (("", 401), (keys.generate().text, 401), (API, 403)):
        async with connect(key) as client:
            answer = await client.request(method, path, content=b"\xff garbage", params={"limit": "x"})
            check_error(answer, status)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_bodies_are_bounded_as_configured(client: httpx.AsyncClient, method: str, path: str) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(10)

    check_error(await client.request(method, path, content=b" " * 8193), 413)
    check_error(await client.request(method, path, content=slowly()), 408)


async def test_an_account_is_created_changed_and_listed(client: httpx.AsyncClient) -> None:
    made = await _post(client, "accounts", name="acme", plan="gold")
    assert (made["name"], made["plan"], made["disabled"], made["overrides"]) == ("acme", "gold", False, {})
    changes = {"plan": "default", "overrides": {"account": {"rpm": 3}}}
    changed = (await client.patch(f"/admin/v1/accounts/{made['id']}", json=changes)).json()
    assert (changed["plan"], changed["overrides"]) == ("default", {"account": {"rpm": 3}})
    assert (await client.get("/admin/v1/accounts/acme")).json() == changed
    listed = (await client.get("/admin/v1/accounts")).json()
    assert {account["name"] for account in listed["data"]} == {"admin", "default", "acme"}
    assert listed["has_more"] is False


async def test_pages(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await _post(client, "accounts", name=f"a{number}")
    first = (await client.get("/admin/v1/accounts", params={"limit": 4})).json()
    assert first["has_more"] is True
    second = (await client.get("/admin/v1/accounts", params={"after": first["data"][-1]["id"]})).json()
    assert [account["name"] for account in second["data"]] == ["a2"]
    assert second["has_more"] is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "acct_x"}, "name"),
        ({"name": 5}, "name"),
        ({"name": "x", "plan": "platinum"}, "plan"),
        ({"name": "x", "colour": 1}, "colour"),
        ({"name": "x", "overrides": {"account": {"rpm": -1}}}, "overrides"),
        ({"name": "x", "overrides": {"features": {"juggling": {}}}}, "overrides"),
        ({"name": "x", "overrides": {"account": {"tpm": 1}}}, "overrides"),
        ({"name": "x", "overrides": {"account": {"rpm": 1, "shadow": ["tpm"]}}}, "overrides"),
    ],
)
async def test_a_bad_account_is_refused(client: httpx.AsyncClient, body: dict[str, object], param: str) -> None:
    error = check_error(await client.post("/admin/v1/accounts", json=body), 400)
    assert error["param"] == param
    assert "quota.plans" not in error["message"]  # paths are those of the body


async def test_a_taken_name_is_a_conflict(client: httpx.AsyncClient) -> None:
    assert check_error(await client.post("/admin/v1/accounts", json={"name": "default"}), 409)["param"] == "name"


async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    check_error(await client.get("/admin/v1/accounts/nobody"), 404)
    check_error(await client.patch("/admin/v1/accounts/nobody", json={}), 404)
    check_error(await client.get("/admin/v1/keys/nothing"), 404)
    check_error(await client.delete("/admin/v1/keys/nothing"), 404)
    check_error(await client.post("/admin/v1/keys", json={"account": "nobody"}), 404)
    check_error(await client.get("/admin/v1/keys", params={"account": "nobody"}), 404)
    check_error(await client.get("/admin/v1/usage", params={"account": "nobody"}), 404)


async def test_a_key_is_shown_once_and_works(client: httpx.AsyncClient, connect: Connect, services: Services) -> None:
    made = await _post(
        client,
        "keys",
        account="default",
        name="laptop",
        models=["big@1", "small"],
        features=["chat"],
        limits={"rpm": 5},
        expires_in_days=30,
    )
    assert keys.parse(made["key"]) == keys.ParsedKey(made["id"])
    async with connect(made["key"]) as user:
        assert (await user.get("/v1/models")).status_code == 200
    await services.authenticator.flush_used()
    listed = (await client.get("/admin/v1/keys", params={"account": "default"})).json()["data"]
    shown = next(key for key in listed if key["id"] == made["id"])
    assert "key" not in shown
    assert (shown["account"], shown["name"], shown["kind"], shown["limits"]) == ("default", "laptop", "api", {"rpm": 5})
    assert (shown["models"], shown["features"]) == (["big@1", "small"], ["chat"])
    assert shown["last_used_at"] is not None
    assert datetime.fromisoformat(shown["expires_at"]) > utc_now() + timedelta(days=29)
    everything = (await client.get("/admin/v1/keys")).text + (await client.get(f"/admin/v1/keys/{made['id']}")).text
    assert made["key"].split("-")[3] not in everything
    assert "digest" not in everything


@pytest.mark.parametrize("by", ["DELETE", "POST"])
async def test_a_revocation_holds_at_once(client: httpx.AsyncClient, connect: Connect, by: str) -> None:
    made = await _post(client, "keys", account="default")
    async with connect(made["key"]) as user:
        assert (await user.get("/v1/models")).status_code == 200
        path = f"/admin/v1/keys/{made['id']}" + ("/revoke" if by == "POST" else "")
        revoked = await client.request(by, path)
        assert revoked.json()["revoked_at"] is not None
        check_error(await user.get("/v1/models"), 401)
    assert (await client.request(by, path)).json() == revoked.json()


async def test_disabling_an_account_holds_at_once(client: httpx.AsyncClient, connect: Connect) -> None:
    async with connect(API) as user:
        assert (await user.get("/v1/models")).status_code == 200
        await client.patch("/admin/v1/accounts/default", json={"disabled": True})
        check_error(await user.get("/v1/models"), 401)
        await client.patch("/admin/v1/accounts/default", json={"disabled": False})
        assert (await user.get("/v1/models")).status_code == 200


async def test_administrators_can_not_lock_themselves_out(client: httpx.AsyncClient) -> None:
    check_error(await client.patch("/admin/v1/accounts/admin", json={"disabled": True}), 409)


async def test_an_admin_key(client: httpx.AsyncClient, connect: Connect) -> None:
    made = await _post(client, "keys", kind="admin", name="second")
    assert made["account"] == "admin"
    async with connect(made["key"]) as second:
        assert (await second.get("/admin/v1/keys")).status_code == 200
        check_error(await second.get("/v1/models"), 403)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "account"),
        ({"account": "admin"}, "account"),
        ({"account": "default", "kind": "admin"}, "account"),
        ({"kind": "admin", "limits": {"rpm": 1}}, "limits"),
        ({"account": "default", "kind": "root"}, "kind"),
        ({"account": "default", "models": "big"}, "models"),
        ({"account": "default", "models": [""]}, "models.0"),
        ({"account": "default", "features": ["juggling"]}, "features"),
        ({"account": "default", "limits": {"rpm": "5"}}, "limits"),
        ({"account": "default", "limits": {"bananas": 5}}, "limits"),
        ({"account": "default", "name": "a\nb"}, "name"),
        ({"account": "default", "expires_in_days": 0}, "expires_in_days"),
        ({"account": "default", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"account": "default", "expires_at": "2100-01-01T00:00:00"}, "expires_at"),
        ({"account": "default", "expires_at": "9999-12-31T23:59:59-05:00"}, "expires_at"),
        ({"account": "default", "expires_at": "2100-01-01T00:00:00Z", "expires_in_days": 1}, None),
        ({"account": "default", "digest": "x"}, "digest"),
    ],
)
async def test_a_bad_key_is_refused(client: httpx.AsyncClient, body: dict[str, object], param: str | None) -> None:
    assert check_error(await client.post("/admin/v1/keys", json=body), 400)["param"] == param


@pytest.fixture
async def scoped(services: Services, connect: Connect) -> AsyncIterator[httpx.AsyncClient]:
    """An administrator who holds two models, one feature, and ten days."""
    owner = await services.store.accounts.ensure("admin")
    spec = KeySpec(
        owner,
        KeyKind.ADMIN,
        models=frozenset({"big", "small@1"}),
        features=frozenset({"chat"}),
        expires_at=utc_now() + timedelta(days=10),
    )
    issued = await issue_key(services.store, PEPPER, spec)
    async with connect(issued.text) as opened:
        yield opened


async def test_a_key_inherits_what_its_creator_holds(scoped: httpx.AsyncClient) -> None:
    for body in ({"account": "default"}, {"kind": "admin"}):
        made = await _post(scoped, "keys", **body)
        assert (made["models"], made["features"]) == (["big", "small@1"], ["chat"])
        assert datetime.fromisoformat(made["expires_at"]) < utc_now() + timedelta(days=11)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"models": ["big"]}, 200),
        ({"models": ["big@7", "small@1"]}, 200),
        ({"models": []}, 200),
        ({"models": ["small"]}, 403),
        ({"models": ["small@2"]}, 403),
        ({"models": ["big", "other"]}, 403),
        ({"features": ["chat"]}, 200),
        ({"features": ["chat", "tools"]}, 403),
        ({"expires_in_days": 9}, 200),
        ({"expires_in_days": 11}, 403),
        ({"expires_at": "2100-01-01T00:00:00Z"}, 403),
    ],
)
async def test_a_key_never_grants_more_than_its_creator_holds(
    scoped: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    answer = await scoped.post("/admin/v1/keys", json={"account": "default", **body})
    assert answer.status_code == status, answer.text


def _usage(number: int, account_id: str, day: int, model: str = "big") -> UsageRecord:
    return UsageRecord(
        request_id=f"r{number}",
        account_id=account_id,
        key_id="k1",
        model=model,
        version="1",
        endpoint="/v1/chat/completions",
        features=frozenset({"chat"}),
        prompt_tokens=10,
        cached_tokens=2,
        completion_tokens=5,
        started_at=datetime(2025, 3, day, tzinfo=UTC),
        queue_ms=0,
        first_token_ms=1,
        total_ms=2,
        outcome="stop",
    )


async def test_usage_is_summed(client: httpx.AsyncClient, services: Services) -> None:
    acme = await services.store.accounts.create("acme")
    rows = [_usage(1, acme.id, 1), _usage(2, acme.id, 2), _usage(3, acme.id, 2, "small"), _usage(4, "acct_gone", 3)]
    await services.store.usage.add(rows)

    async def ask(**params: object) -> list[dict[str, Any]]:
        answer = await client.get("/admin/v1/usage", params={name: str(value) for name, value in params.items()})
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    by_account = await ask()
    assert {(row["account"], row["requests"], row["prompt_tokens"]) for row in by_account} == {
        ("acme", 3, 30),
        (None, 1, 10),
    }
    by_model = await ask(group_by="model,day", account="acme")
    assert [(row["model"], row["version"], row["day"]) for row in by_model] == [
        ("big", "1", "2025-03-01"),
        ("big", "1", "2025-03-02"),
        ("small", "1", "2025-03-02"),
    ]
    assert [row["requests"] for row in await ask(group_by="key", since="2025-03-02", until="2025-03-02")] == [2]
    by_feature = await ask(group_by="feature,account,key,model,day", until="2025-03-01")
    assert by_feature == [
        {
            "object": "usage",
            "account": "acme",
            "account_id": acme.id,
            "key_id": "k1",
            "model": "big",
            "version": "1",
            "feature": "chat",
            "day": "2025-03-01",
            "requests": 1,
            "prompt_tokens": 10,
            "cached_tokens": 2,
            "completion_tokens": 5,
            "replayed_prompt_tokens": 0,
            "replayed_completion_tokens": 0,
        }
    ]
    assert [row["requests"] for row in await ask(key="k1", model="big@1")] == [2, 1]
    assert await ask(key="k2") == await ask(model="big@2") == []


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "day,day"}, "group_by"),
        ({"group_by": ""}, "group_by"),
        ({"since": "yesterday"}, "since"),
        ({"limit": "0"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"page": "2"}, "page"),
    ],
)
async def test_a_bad_query_is_refused(client: httpx.AsyncClient, params: dict[str, str], param: str) -> None:
    assert check_error(await client.get("/admin/v1/usage", params=params), 400)["param"] == param


async def test_a_database_that_fails_is_a_503(client: httpx.AsyncClient, services: Services) -> None:
    async with services.store.database.write() as session:
        await session.execute(text("ALTER TABLE usage RENAME TO elsewhere"))
    error = check_error(await client.get("/admin/v1/usage"), 503)
    assert "elsewhere" not in error["message"]


async def test_no_key_is_logged(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = await _post(client, "keys", account="default")
    await client.delete(f"/admin/v1/keys/{made['id']}")
    assert made["id"] in caplog.text
    for secret in (made["key"].split("-")[3], ADMIN, API):
        assert secret not in caplog.text
