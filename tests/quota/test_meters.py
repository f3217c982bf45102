from datetime import UTC, datetime

import pytest

from quota.levels import Period
from quota.meters import DAY_MS, MINUTE_MS, Bucket, undrained, window, window_end


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("now", "index", "end"),
    [
        (ms(1970, 1, 1), 0, ms(1970, 2, 1)),
        (ms(2024, 2, 29, 23, 59, 59) + 999, 54 * 12 + 1, ms(2024, 3, 1)),
        (ms(2024, 12, 31, 23, 59, 59) + 999, 54 * 12 + 11, ms(2025, 1, 1)),
        (ms(2025, 1, 1), 55 * 12, ms(2025, 2, 1)),
    ],
)
def test_month_window(now: int, index: int, end: int) -> None:
    month = window(Period.MONTH, now)
    assert (month.index, month.ends_ms) == (index, end)
    assert window_end(Period.MONTH, index) == end


def test_day_window() -> None:
    last = window(Period.DAY, 3 * DAY_MS - 1)
    assert (last.index, last.ends_ms) == (2, 3 * DAY_MS)
    assert window(Period.DAY, 3 * DAY_MS).index == 3


def test_a_bucket_leaks_its_limit_each_millisecond() -> None:
    bucket = Bucket(used=10 * MINUTE_MS, updated_ms=1000, limit=10)
    assert bucket.level(1001, 10) == 10 * MINUTE_MS - 10
    assert bucket.level(61_000 - 1, 10) == 10
    assert bucket.level(61_000, 10) == 0
    assert bucket.level(10**12, 10) == 0
    assert bucket.level(0, 10) == 10 * MINUTE_MS, "a clock set back leaks nothing"


def test_a_bucket_under_another_limit() -> None:
    bucket = Bucket(used=10 * MINUTE_MS, updated_ms=0, limit=10)
    assert bucket.level(0, 4) == 4 * MINUTE_MS, "no more than the capacity"
    assert bucket.level(60_000, 1) == 0, "empty by its own limit"
    assert bucket.level(1, 20) == 10 * MINUTE_MS - 20


def test_what_leaked_is_first_in_first_out() -> None:
    assert undrained(level=500, charged_ms=0, now=0, limit=10) == 500
    assert undrained(level=500, charged_ms=0, now=49, limit=10) == 10
    assert undrained(level=500, charged_ms=0, now=50, limit=10) == 0
    assert undrained(level=500, charged_ms=100, now=0, limit=10) == 500
