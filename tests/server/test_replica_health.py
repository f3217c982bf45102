"""When a replica is set aside, and how it comes back."""

from __future__ import annotations

import pytest

from server.replica_health import (
    FIRST_BAN,
    FORGIVEN_AFTER,
    MAX_BAN,
    MAX_FAILURES,
    SLOW_WINDOWS,
    Health,
    Window,
    slow_ones,
)


def fail_until_set_aside(health: Health, now: float) -> int:
    failures = 1
    while not health.failed():
        failures += 1
    health.set_aside(now)
    return failures


def test_failures_in_a_row_open_the_breaker() -> None:
    health = Health()
    assert not any(health.failed() for _ in range(MAX_FAILURES - 1))
    health.answered(1.0)
    assert fail_until_set_aside(health, 2.0) == MAX_FAILURES
    assert health.is_set_aside
    assert not any(health.failed() for _ in range(10)), "what it had before is no news"


def test_a_probe_closes_it_or_opens_it_for_longer() -> None:
    health, now, ban = Health(), 100.0, FIRST_BAN
    fail_until_set_aside(health, now)
    for _ in range(8):
        assert not health.wants_probe(now + ban - 0.1)
        now += ban
        assert health.wants_probe(now)
        health.probe()
        assert not health.wants_probe(now), "one at a time"
        assert health.failed()
        health.set_aside(now)
        ban = min(2 * ban, MAX_BAN)
    assert ban == MAX_BAN
    now += ban
    health.probe()
    health.answered(now)
    assert not health.is_set_aside


def test_a_probe_that_is_taken_back_is_followed_by_another() -> None:
    health = Health()
    health.set_aside(0.0)
    health.probe()
    health.left()
    assert health.is_set_aside
    assert health.wants_probe(FIRST_BAN)


def test_who_does_well_for_long_begins_anew() -> None:
    health = Health()
    for now in (0.0, FIRST_BAN + 2 * FORGIVEN_AFTER):
        health.set_aside(now)
        assert health.wants_probe(now + FIRST_BAN)
        health.probe()
        health.answered(now + FIRST_BAN)


def window(pace: float, work: float = 4.0, steps: int = 100) -> Window:
    return Window(steps, pace * steps, round(work * steps))


@pytest.mark.parametrize(
    ("windows", "slow"),
    [
        ([window(0.02), window(0.02)], [False, False]),
        ([window(0.02), window(0.1)], [False, True]),
        ([window(0.02), window(0.1, work=8)], [False, False]),  # it does more in a step
        ([window(0.001), window(0.006)], [False, False]),  # by milliseconds
        ([window(0.02), window(0.1, steps=4)], [False, False]),  # too few to say
        ([window(0.02), None, window(0.1)], [False, False, True]),
        ([window(0.1)], [False]),
        ([None, window(0.1)], [False, False]),
        ([window(0.02), window(0.021), window(0.3), window(0.3)], [False, False, True, True]),
        ([window(0.02), window(0.021), window(0.022), window(0.3)], [False, False, False, True]),
    ],
)
def test_who_is_slower_than_its_peers(windows: list[Window | None], slow: list[bool]) -> None:
    assert slow_ones(windows) == slow


def test_once_slow_is_no_reason() -> None:
    health = Health()
    assert not any(health.was_slow(True) for _ in range(SLOW_WINDOWS - 1))
    assert not health.was_slow(False)
    assert [health.was_slow(True) for _ in range(SLOW_WINDOWS)][-1]
