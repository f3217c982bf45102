"""Plans that an administrator sets while the server runs, and what accounts see of their limits and usage."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from server.store import Store
from tests.penstock_process import PenstockProcess
from tests.wire.conftest import chat_body, check_error

CHAT = "/v1/chat/completions"
PLAN = "/admin/v1/plans/trial"


def _new_key(admin: httpx.Client) -> dict[str, Any]:
    name = "on-trial"
    admin.post("/admin/v1/accounts", json={"name": name, "plan": "trial"}).raise_for_status()
    made: dict[str, Any] = admin.post("/admin/v1/keys", json={"account": name}).raise_for_status().json()
    return made


def test_a_plan_on_trial_and_then_in_earnest(server: PenstockProcess, admin: httpx.Client) -> None:
    shadow = {"account": {"requests_per_day": 2, "tokens_per_day": 100_000, "shadow": ["requests_per_day"]}}
    admin.put(PLAN, json=shadow).raise_for_status()
    key = _new_key(admin)
    labels = {"level": "account", "dimension": "requests_per_day"}
    before = server.metric("penstock_quota_shadow_refusals_total", **labels)
    with server.http(key["key"]) as client:
        for _ in range(3):
            answer = client.post(CHAT, json=chat_body()).raise_for_status()
            assert "x-ratelimit-limit-requests" not in answer.headers  # nobody is told to slow down
            assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
        assert server.metric("penstock_quota_shadow_refusals_total", **labels) == before + 1

        usage = _usage_of(client, requests=3)
        (group,) = usage["data"]
        assert (group["model"], group["version"], group["requests"]) == ("echo", "1", 3)
        requests, tokens = usage["limits"]
        assert (requests["dimension"], requests["used"], requests["remaining"]) == ("requests_per_day", 3, 0)
        assert (requests["shadow"], tokens["shadow"]) == (True, False)
        assert tokens["used"] == group["prompt_tokens"] + group["completion_tokens"]
        (chat,) = client.get("/v1/usage?group_by=feature").json()["data"]
        assert (chat["feature"], chat["requests"]) == ("chat", 3)

        admin.put(PLAN, json={"account": {"requests_per_day": 2}}).raise_for_status()
        check_error(client.post(CHAT, json=chat_body()), 429, "insufficient_quota")
        near = server.metric("penstock_quota_near_limit_total", **labels)
        admin.put(f"/admin/v1/accounts/{key['account']}/limits", json={"account": {"requests_per_day": 5}})
        client.post(CHAT, json=chat_body()).raise_for_status()
        assert server.metric("penstock_quota_near_limit_total", **labels) == near + 1
    check_error(admin.delete(PLAN), 409, "conflict")


def test_what_is_stored_holds_from_the_first_request_on(tmp_path: Path) -> None:
    async def store_plan() -> None:
        store = await Store.open(data_dir=tmp_path / "data")
        await store.plans.put("default", {"account": {"rpm": 7}})
        await store.close()

    asyncio.run(store_plan())
    with PenstockProcess(tmp_path) as server, server.http() as client:
        assert client.get("/v1/models").headers["x-ratelimit-limit-requests"] == "7"


def _usage_of(client: httpx.Client, requests: int) -> dict[str, Any]:
    """Once the writer has written: half a second later, or on a busy machine a little more."""
    deadline = time.monotonic() + 30
    while True:
        usage: dict[str, Any] = client.get("/v1/usage").raise_for_status().json()
        if sum(group["requests"] for group in usage["data"]) == requests:
            return usage
        assert time.monotonic() < deadline, usage
        time.sleep(0.05)
