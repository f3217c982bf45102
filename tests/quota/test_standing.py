"""How limits stand: what is used of them, what is left, and when they are whole again."""

from datetime import UTC, datetime

import pytest

from quota.ledger import AccountUsage, Counter
from quota.levels import Dimension, Level, Limits, Plan
from quota.memory import MemoryLedger
from quota.meters import DAY_MS
from quota.standing import Standing, standings

NOON = int(datetime(2025, 3, 10, 12, tzinfo=UTC).timestamp()) * 1000
HALF_DAY = DAY_MS // 2
TODAY = NOON // DAY_MS
MARCH = (2025 - 1970) * 12 + 2
ALL = Limits(rpm=10, tpm=100, requests_per_day=10, tokens_per_day=100, tokens_per_month=100, concurrent=4)


def stand(limits: Limits, *counters: Counter) -> dict[Dimension, Standing]:
    rows = standings(Plan("p", account=limits), {}, AccountUsage("a", NOON, counters))
    return {row.dimension: row for row in rows}


def counter(dimension: Dimension, used: int, period: int = 0) -> Counter:
    return Counter(Level.ACCOUNT, "", dimension, period, used, None)


@pytest.mark.parametrize(
    ("used", "shown", "remaining", "reset_ms"),
    [
        (0, 0, 10, 0),
        (1, 1, 9, 1),  # what is not whole yet is used
        (60_000, 1, 9, 6_000),
        (60_001, 2, 8, 6_001),
        (600_000, 10, 0, 60_000),
        (6_000_000, 10, 0, 60_000),  # filled under a higher limit
    ],
)
def test_a_bucket_is_in_whole_requests(used: int, shown: int, remaining: int, reset_ms: int) -> None:
    row = stand(Limits(rpm=10), counter(Dimension.RPM, used))[Dimension.RPM]
    assert (row.used, row.remaining, row.reset_ms) == (shown, remaining, reset_ms)


def test_budgets_are_those_of_the_current_period() -> None:
    rows = stand(
        Limits(tokens_per_day=100, tokens_per_month=1000),
        counter(Dimension.TOKENS_PER_DAY, 30, TODAY),
        counter(Dimension.TOKENS_PER_DAY, 99, TODAY - 1),
        counter(Dimension.TOKENS_PER_MONTH, 500, MARCH),
        counter(Dimension.TOKENS_PER_MONTH, 999, MARCH - 1),
    )
    day, month = rows[Dimension.TOKENS_PER_DAY], rows[Dimension.TOKENS_PER_MONTH]
    assert (day.used, day.remaining, day.reset_ms) == (30, 70, HALF_DAY)
    assert (month.used, month.remaining, month.reset_ms) == (500, 500, HALF_DAY + 21 * DAY_MS)


def test_nobody_knows_when_concurrency_frees() -> None:
    row = stand(Limits(concurrent=4), counter(Dimension.CONCURRENT, 3))[Dimension.CONCURRENT]
    assert (row.used, row.remaining, row.reset_ms) == (3, 1, None)


def test_what_is_past_its_limit_has_nothing_left() -> None:
    """A budget that was lowered, or that is in shadow."""
    limits = Limits(tokens_per_day=10, concurrent=1, shadow=frozenset({Dimension.TOKENS_PER_DAY}))
    rows = stand(limits, counter(Dimension.TOKENS_PER_DAY, 30, TODAY), counter(Dimension.CONCURRENT, 2))
    assert [(row.used, row.remaining, row.shadow) for row in rows.values()] == [(30, 0, True), (2, 0, False)]


@pytest.mark.parametrize(("used", "near"), [(0, False), (7, False), (8, True), (10, True), (12, True)])
def test_near(used: int, near: bool) -> None:
    assert stand(Limits(concurrent=10), counter(Dimension.CONCURRENT, used))[Dimension.CONCURRENT].is_near is near


def test_a_limit_of_nothing_is_reached() -> None:
    row = stand(Limits(rpm=0))[Dimension.RPM]
    assert (row.used, row.remaining, row.reset_ms, row.is_near) == (0, 0, 0, True)


def test_every_layer_has_its_rows_in_order() -> None:
    plan = Plan(
        "p",
        account=Limits(rpm=5),
        key=Limits(rpm=3, tpm=50),
        models={"m@1": Limits(rpm=2), "m": Limits(rpm=4)},
        features={"tools": Limits(rpm=1)},
    )
    keys = {"k1": Limits(), "k2": Limits(rpm=9, shadow=frozenset({Dimension.RPM}))}
    usage = AccountUsage("a", NOON, (Counter(Level.KEY, "k2", Dimension.TPM, 0, 600_000, 50),))
    rows = standings(plan, keys, usage)
    assert [(row.level, row.name, row.dimension, row.limit, row.used, row.shadow) for row in rows] == [
        (Level.ACCOUNT, "", Dimension.RPM, 5, 0, False),
        (Level.KEY, "k1", Dimension.RPM, 3, 0, False),
        (Level.KEY, "k1", Dimension.TPM, 50, 0, False),
        (Level.KEY, "k2", Dimension.RPM, 9, 0, True),
        (Level.KEY, "k2", Dimension.TPM, 50, 10, False),
        (Level.MODEL, "m", Dimension.RPM, 4, 0, False),
        (Level.MODEL, "m@1", Dimension.RPM, 2, 0, False),
        (Level.FEATURE, "tools", Dimension.RPM, 1, 0, False),
    ]


async def test_a_ledger_and_its_standing_agree() -> None:
    now = NOON
    ledger, plan = MemoryLedger(lambda: now), Plan("p", account=ALL)
    layers = plan.layers("k", "m", "1", ())
    await ledger.reserve("r1", "a", layers, 30)
    left = await ledger.peek("a", layers)
    rows = {row.dimension: row for row in standings(plan, {}, await ledger.usage("a"))}
    assert {d: row.used for d, row in rows.items()} == {
        Dimension.RPM: 1,
        Dimension.TPM: 30,
        Dimension.REQUESTS_PER_DAY: 1,
        Dimension.TOKENS_PER_DAY: 30,
        Dimension.TOKENS_PER_MONTH: 30,
        Dimension.CONCURRENT: 1,
    }
    assert rows[Dimension.RPM].remaining == left.remaining_requests
    assert rows[Dimension.TPM].reset_ms == left.reset_tokens_ms
