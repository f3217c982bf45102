import dataclasses
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quota.levels import Level
from server.store import Store
from server.store.records import UsageDimension, UsageRecord, UsageTotal

DAY = date(2025, 3, 10)
NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)


def record(request_id: str, **changes: object) -> UsageRecord:
    made = UsageRecord(
        request_id=request_id,
        account_id="acct_1",
        key_id="k1",
        model="big",
        version="1",
        endpoint="/v1/chat/completions",
        features=frozenset({"chat", "stream"}),
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=5,
        started_at=NOON,
        queue_ms=1,
        first_token_ms=20,
        total_ms=100,
        outcome="stop",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def expected_totals(records: Iterable[UsageRecord], since: date) -> list[UsageTotal]:
    """The same sums, one request at a time."""
    sums: dict[tuple[str, Level, str, date], list[int]] = {}
    for r in records:
        layers = [(Level.ACCOUNT, ""), (Level.KEY, r.key_id), (Level.MODEL, r.model)]
        layers += [(Level.MODEL, f"{r.model}@{r.version}"), *((Level.FEATURE, name) for name in r.features)]
        for level, name in layers if r.day >= since else ():
            counts = sums.setdefault((r.account_id, level, name, r.day), [0, 0])
            counts[0] += 1
            counts[1] += r.prompt_tokens + r.completion_tokens
    return [UsageTotal(*group, *counts) for group, counts in sorted(sums.items())]


async def test_a_request_is_written_once(store: Store) -> None:
    await store.usage.add([record("r1"), record("r2")])
    await store.usage.add([record("r2", prompt_tokens=999), record("r3")])
    (total,) = await store.usage.sums([])
    assert (total.requests, total.prompt_tokens, total.completion_tokens) == (3, 30, 15)


async def test_a_repeat_within_one_batch_is_written_once(store: Store) -> None:
    await store.usage.add([record("r1"), record("r1")])
    assert (await store.usage.sums([]))[0].requests == 1


async def test_no_usage_sums_to_zero(store: Store) -> None:
    (total,) = await store.usage.sums([])
    assert (total.requests, total.prompt_tokens) == (0, 0)
    assert await store.usage.sums([UsageDimension.ACCOUNT]) == []
    assert await store.usage.totals_since(DAY) == []


async def test_the_day_is_utc() -> None:
    late = datetime(2025, 3, 10, 23, 30, tzinfo=timezone(timedelta(hours=-3)))
    assert record("r1", started_at=late).day == date(2025, 3, 11)


async def test_totals_name_every_layer(store: Store) -> None:
    await store.usage.add([record("r1"), record("r2", version="2", features=frozenset({"chat"}), prompt_tokens=0)])
    totals = {
        (total.level, total.name): (total.requests, total.tokens) for total in await store.usage.totals_since(DAY)
    }
    assert totals == {
        (Level.ACCOUNT, ""): (2, 20),
        (Level.KEY, "k1"): (2, 20),
        (Level.MODEL, "big"): (2, 20),
        (Level.MODEL, "big@1"): (1, 15),
        (Level.MODEL, "big@2"): (1, 5),
        (Level.FEATURE, "chat"): (2, 20),
        (Level.FEATURE, "stream"): (1, 15),
    }


_records = st.lists(
    st.builds(
        lambda number, account, key, model, version, features, prompt, completion, day: record(
            f"r{number}",
            account_id=account,
            key_id=key,
            model=model,
            version=version,
            features=features,
            prompt_tokens=prompt,
            completion_tokens=completion,
            started_at=NOON + timedelta(days=day),
        ),
        st.integers(0, 10**9),
        st.sampled_from(["acct_1", "acct_2"]),
        st.sampled_from(["k1", "k2"]),
        st.sampled_from(["big", "small"]),
        st.sampled_from(["1", "2"]),
        st.frozensets(st.sampled_from(["chat", "stream", "tools"])),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.integers(-2, 2),
    ),
    max_size=12,
    unique_by=lambda r: r.request_id,
)
_batches = {"n": 0}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=_records)
async def test_totals_are_those_of_each_request(store: Store, records: list[UsageRecord]) -> None:
    _batches["n"] += 1  # one store serves all examples: each has accounts of its own
    mine = [dataclasses.replace(r, request_id=f"{_batches['n']}-{r.request_id}") for r in records]
    mine = [dataclasses.replace(r, account_id=f"{r.account_id}-{_batches['n']}") for r in mine]
    if mine:
        await store.usage.add(mine)
    totals = await store.usage.totals_since(DAY)
    suffix = f"-{_batches['n']}"
    assert [total for total in totals if total.account_id.endswith(suffix)] == expected_totals(mine, DAY)


async def test_totals_of_one_account(store: Store) -> None:
    await store.usage.add([record("r1"), record("r2", account_id="acct_2", prompt_tokens=100)])
    totals = await store.usage.totals_since(DAY, "acct_2")
    assert {total.account_id for total in totals} == {"acct_2"}
    assert {total.tokens for total in totals} == {105}


async def test_totals_leave_out_requests_by_the_tens_of_thousands(store: Store) -> None:
    """More than SQLite takes parameters. Ids that are not stored leave nothing out."""
    await store.usage.add([record("r1"), record("r2", prompt_tokens=100), record('r"3', prompt_tokens=1000)])
    without = ["r2", 'r"3', *(f"absent-{n}" for n in range(40_000))]
    assert await store.usage.totals_since(DAY, without=without) == expected_totals([record("r1")], DAY)
    assert await store.usage.totals_since(DAY, "acct_2", without) == []


async def test_sums_group_and_filter(store: Store) -> None:
    yesterday = NOON - timedelta(days=1)
    await store.usage.add(
        [
            record("r1"),
            record("r2", key_id="k2", version="2"),
            record("r3", account_id="acct_2", key_id="k3", started_at=yesterday),
        ]
    )
    by_account = await store.usage.sums([UsageDimension.ACCOUNT])
    assert [(row.account_id, row.requests, row.key_id) for row in by_account] == [
        ("acct_1", 2, None),
        ("acct_2", 1, None),
    ]
    by_model = await store.usage.sums([UsageDimension.MODEL])
    assert [(row.model, row.version, row.requests) for row in by_model] == [("big", "1", 2), ("big", "2", 1)]
    by_day = await store.usage.sums([UsageDimension.DAY, UsageDimension.KEY])
    assert [(row.day, row.key_id) for row in by_day] == [(yesterday.date(), "k3"), (DAY, "k1"), (DAY, "k2")]
    mine = await store.usage.sums([UsageDimension.KEY], account_id="acct_1")
    assert [row.key_id for row in mine] == ["k1", "k2"]
    assert (await store.usage.sums([], since=DAY))[0].requests == 2
    assert (await store.usage.sums([], until=yesterday.date()))[0].cached_tokens == 4
    assert len(await store.usage.sums([UsageDimension.KEY], limit=2)) == 2


async def test_a_request_counts_in_each_feature_that_it_used(store: Store) -> None:
    yesterday = NOON - timedelta(days=1)
    await store.usage.add(
        [
            record("r1"),
            record("r2", features=frozenset({"chat", "tools"}), started_at=yesterday),
            record("r3", features=frozenset()),
        ]
    )
    by_feature = await store.usage.sums([UsageDimension.FEATURE])
    assert [(row.feature, row.requests, row.prompt_tokens) for row in by_feature] == [
        ("chat", 2, 20),
        ("stream", 1, 10),
        ("tools", 1, 10),
    ]
    everything = await store.usage.sums(list(UsageDimension), since=DAY)
    groups = [(row.account_id, row.key_id, row.model, row.version, row.feature, row.day) for row in everything]
    assert groups == [("acct_1", "k1", "big", "1", feature, DAY) for feature in ("chat", "stream")]
    assert [row.feature for row in await store.usage.sums([UsageDimension.FEATURE], limit=1)] == ["chat"]


async def test_sums_of_one_key_and_of_one_model(store: Store) -> None:
    rows = [record("r1"), record("r2", version="2"), record("r3", model="small"), record("r4", key_id="k2")]
    await store.usage.add(rows)

    async def requests(**only: str) -> int:
        (total,) = await store.usage.sums([], **only)  # type: ignore[arg-type]
        return total.requests

    assert await requests(key_id="k2") == 1
    assert await requests(model="big") == 3
    assert await requests(model="big@2") == 1
    assert await requests(model="big@3") == 0
    assert await requests(model="small", key_id="k2") == 0


async def test_a_replayed_answer_is_a_request_without_tokens(store: Store) -> None:
    """As it was charged; what it would have cost is added up apart."""
    cached = {"computed": None, "miss": "miss", "hit": "hit", "shared": "shared"}
    await store.usage.add([record(name, cache=value) for name, value in cached.items()])
    total = (await store.usage.totals_since(DAY, "acct_1"))[0]
    assert (total.level, total.requests, total.tokens) == (Level.ACCOUNT, 4, 2 * 15)
    (summed,) = await store.usage.sums([])
    assert (summed.requests, summed.prompt_tokens, summed.cached_tokens, summed.completion_tokens) == (4, 20, 8, 10)
    assert (summed.replayed_prompt_tokens, summed.replayed_completion_tokens) == (20, 10)
