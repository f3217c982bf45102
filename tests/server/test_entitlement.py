"""Quota in OpenAI's words: headers, durations, refusals, and which layers a request touches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import pytest

from quota.ledger import QuotaDecision, Refusal, Remaining
from quota.levels import Dimension, Level, Plan
from quota.memory import MemoryLedger, wall_clock_ms
from server.auth import Principal
from server.entitlement import Entitlement, duration, limit_headers, refused
from server.errors import InvalidRequest, PermissionDenied, RateLimited
from server.plans import PlanBook
from server.store.records import KeyKind


def principal(**changes: Any) -> Principal:
    fields: dict[str, Any] = {
        "account_id": "acct",
        "account_name": "acme",
        "key_id": "key1",
        "kind": KeyKind.API,
        "models": None,
        "features": None,
        "plan": "default",
        "overrides": {},
        "limits": {},
        "expires_at": None,
    }
    return Principal(**(fields | changes))


PLANS = {
    "default": Plan.parse("default", {"account": {"rpm": 2, "tpm": 100}, "features": {"stream": {"concurrent": 1}}}),
    "gold": Plan.parse("gold", {"account": {"rpm": 50}, "models": {"m": {"tpm": 10}, "m@2": {"rpm": 1}}}),
}


def entitlement(plans: Mapping[str, Plan] = PLANS) -> tuple[Entitlement, list[QuotaDecision]]:
    decisions: list[QuotaDecision] = []
    return Entitlement(MemoryLedger(lambda: 0), PlanBook(plans, cast(Any, None)), decisions.append), decisions


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (12, "12ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (1001, "1.001s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (90_500, "1m30.5s"),
        (3_600_000, "1h0m0s"),
        (7_500_000, "2h5m0s"),
        (31 * 86_400_000, "744h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_headers_name_what_is_limited_and_nothing_else() -> None:
    assert limit_headers(Remaining()) == {}
    requests = limit_headers(Remaining(limit_requests=60, remaining_requests=0, reset_requests_ms=1500))
    assert requests == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1.5s",
    }
    tokens = limit_headers(Remaining(limit_tokens=0, remaining_tokens=0, reset_tokens_ms=0))
    assert set(tokens) == {f"x-ratelimit-{kind}-tokens" for kind in ("limit", "remaining", "reset")}


@pytest.mark.parametrize(
    ("dimension", "kind"),
    [(Dimension.RPM, "requests"), (Dimension.TPM, "tokens"), (Dimension.CONCURRENT, "requests")],
)
def test_a_rate_says_which_and_when(dimension: Dimension, kind: str) -> None:
    wait = None if dimension is Dimension.CONCURRENT else 1200
    error = refused(Refusal(Level.MODEL, "m@1", dimension, 7, wait), {"x-ratelimit-limit-requests": "7"})
    assert (error.status, error.type, error.code) == (429, kind, "rate_limit_exceeded")
    for word in ("model 'm@1'", "7", "Try again in"):
        assert word in error.message
    assert error.headers == {
        "x-ratelimit-limit-requests": "7",
        "retry-after-ms": str(wait or 1000),
        "retry-after": "2" if wait else "1",
    }


@pytest.mark.parametrize(
    "dimension", [Dimension.REQUESTS_PER_DAY, Dimension.TOKENS_PER_DAY, Dimension.TOKENS_PER_MONTH]
)
def test_a_spent_budget_tells_the_sdk_not_to_retry(dimension: Dimension) -> None:
    error = refused(Refusal(Level.ACCOUNT, "", dimension, 7, 5000), {})
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
    assert error.headers["x-should-retry"] == "false"
    assert re.fullmatch(r"Quota of the account exceeded: 7 (requests|tokens) per (day|month)\.", error.message)


async def test_a_request_is_reserved_settled_and_refused() -> None:
    mine, decisions = entitlement()
    layers = mine.layers(principal(), "m", "1", {"chat"})
    grant = await mine.reserve("r1", "acct", layers, 90)
    assert grant.headers["x-ratelimit-remaining-requests"] == "1"
    with pytest.raises(RateLimited) as caught:
        await mine.reserve("r2", "acct", layers, 90)
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "10"
    refusals = [decision.refusal.dimension if decision.refusal else None for decision in decisions]
    assert refusals == [None, Dimension.TPM]
    await mine.settle(grant, 5)
    again = await mine.reserve("r2", "acct", layers, 90)
    await mine.release(again)
    assert (await mine.headers(principal()))["x-ratelimit-remaining-tokens"] == "95"


async def test_what_no_wait_would_admit_is_a_bad_request() -> None:
    mine, decisions = entitlement()
    with pytest.raises(InvalidRequest) as caught:
        await mine.reserve("r", "acct", mine.layers(principal(), "m", "1", ()), 101)
    assert (caught.value.status, caught.value.code) == (400, "request_above_limit")
    assert caught.value.message == "The request costs 101, above the tpm limit of 100 of its account."
    assert decisions == []


def test_layers() -> None:
    mine, _ = entitlement()

    def names(caller: Principal, *features: str) -> list[tuple[Level, str]]:
        return [(layer.level, layer.name) for layer in mine.layers(caller, "m", "2", features)]

    assert names(principal(), "chat") == [(Level.ACCOUNT, "")]
    assert names(principal(), "chat", "stream") == [(Level.ACCOUNT, ""), (Level.FEATURE, "stream")]
    gold = [(Level.ACCOUNT, ""), (Level.MODEL, "m"), (Level.MODEL, "m@2")]
    assert names(principal(plan="gold"), "stream") == gold
    assert (Level.KEY, "key1") in names(principal(limits={"rpm": 1}))


def test_an_account_of_a_plan_that_is_gone_is_not_unlimited() -> None:
    mine, _ = entitlement()
    (layer,) = mine.layers(principal(plan="gone"), "m", "1", ())
    assert layer.limits.rpm == 2


def test_an_accounts_own_agreement_stands_above_its_plan() -> None:
    mine, _ = entitlement()
    (layer,) = mine.layers(principal(overrides={"account": {"rpm": 9}}), "m", "1", ())
    assert (layer.limits.rpm, layer.limits.tpm) == (9, 100)


def test_a_feature_outside_the_keys_scope_is_refused_by_name() -> None:
    mine, _ = entitlement()
    with pytest.raises(PermissionDenied, match="'stream'"):
        mine.layers(principal(features=frozenset({"chat"})), "m", "1", {"chat", "stream"})


@pytest.mark.parametrize("bad", [{"account": {"rpm": -1}}, {"colour": {}}, {"account": {"rpm": "x"}}, {"account": 5}])
def test_agreements_that_can_not_be_read_leave_the_plan(bad: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """However they came to be stored: no request fails for them."""
    mine, _ = entitlement()
    for _ in range(2):
        (layer,) = mine.layers(principal(overrides=bad), "m", "1", ())
        assert (layer.limits.rpm, layer.limits.tpm) == (2, 100)
    assert len(caplog.records) == 1  # not once a request


def test_a_keys_limits_that_can_not_be_read_leave_the_plan(caplog: pytest.LogCaptureFixture) -> None:
    mine, _ = entitlement()
    for _ in range(2):
        assert mine.layers(principal(limits={"bananas": 1}), "m", "1", ()) == mine.layers(principal(), "m", "1", ())
    assert [record.message for record in caplog.records if "bananas" in record.message] == [caplog.records[0].message]


async def test_how_limits_stand_for_a_key() -> None:
    now = wall_clock_ms()
    ledger = MemoryLedger(lambda: now)
    mine = Entitlement(ledger, PlanBook(PLANS, cast(Any, None)), lambda _: None)
    caller = principal(plan="gold", limits={"concurrent": 5})
    await mine.reserve("r1", "acct", mine.layers(caller, "m", "1", ()), 4)
    rows = [(row.level, row.name, row.dimension, row.limit, row.used) for row in await mine.standings(caller)]
    assert rows == [
        (Level.ACCOUNT, "", Dimension.RPM, 50, 1),
        (Level.KEY, "key1", Dimension.CONCURRENT, 5, 1),
        (Level.MODEL, "m", Dimension.TPM, 10, 4),
        (Level.MODEL, "m@2", Dimension.RPM, 1, 0),
    ]
