"""Which replica gets a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from batching.stats import WorkerStats
from server.affinity import prefix_keys
from server.balancing import LOOK_EVERY, SLACK, TYPICAL_TOKENS, Balancer, Replica
from server.replica_health import FIRST_BAN, MAX_FAILURES, SLOW_WINDOWS, Ejection

PROMPT = [5] * 1000
KEYS = prefix_keys(PROMPT, b"")


class Worker:
    """A client on paper."""

    def __init__(self) -> None:
        self.stats = WorkerStats()
        self.closed = asyncio.Event()

    def work(self, pace: float, steps: int = 50, size: int = 4) -> None:
        self.stats.steps += steps
        self.stats.step_seconds += pace * steps
        self.stats.batch_size_sum += size * steps


class Floor:
    def __init__(self, num_replicas: int) -> None:
        self.workers = [Worker() for _ in range(num_replicas)]
        self.replicas = [Replica(cast(Any, SimpleNamespace(client=worker))) for worker in self.workers]
        self.ejections: list[Ejection] = []
        self.balancer = Balancer(self.replicas, self.ejections.append)

    def pick(self, now: float = 0.0, prompt: list[int] | None = None) -> int | None:
        keys = prefix_keys(prompt, b"") if prompt else []
        picked = self.balancer.pick(now, keys)
        return next((index for index, replica in enumerate(self.replicas) if replica is picked), None)

    def fail(self, index: int, now: float, times: int = MAX_FAILURES) -> None:
        for _ in range(times):
            self.balancer.failed(self.replicas[index], cast(Any, self.workers[index]), now)


def test_of_two_the_one_with_fewer_tokens() -> None:
    floor = Floor(2)
    floor.replicas[0].open_tokens, floor.replicas[0].num_open = 300, 1
    floor.replicas[1].open_tokens, floor.replicas[1].num_open = 200, 9
    assert floor.pick() == 1


def test_what_others_sent_counts() -> None:
    floor = Floor(2)
    floor.workers[0].stats.running = 3
    assert floor.replicas[0].outstanding_tokens == 3 * TYPICAL_TOKENS
    assert floor.pick() == 1


def test_of_many_two_are_looked_at() -> None:
    """The busiest never, the others in turn, those with less to do more often."""
    floor = Floor(5)
    for index, replica in enumerate(floor.replicas):
        replica.open_tokens, replica.num_open = 100 * index, 1
    picked = Counter(floor.pick() for _ in range(2000))
    assert set(picked) == {0, 1, 2, 3}
    assert picked[0] > picked[1] > picked[2] > picked[3]


def test_who_is_away_gets_nothing() -> None:
    floor = Floor(3)
    floor.workers[0].stats.ready = False
    floor.workers[1].closed.set()
    assert {floor.pick() for _ in range(20)} == {2}
    floor.workers[2].closed.set()
    assert floor.pick() is None


def test_the_next_turn_goes_where_its_prefix_is() -> None:
    floor = Floor(2)
    floor.replicas[0].open_tokens = 10
    assert floor.pick(prompt=PROMPT) == 1
    floor.replicas[0].open_tokens, floor.replicas[1].open_tokens = 0, SLACK
    assert floor.pick(prompt=[*PROMPT, 1, 2, 3]) == 1
    assert floor.pick(prompt=[6] * 1000) == 0
    assert floor.pick() == 0


def test_unless_that_one_is_markedly_busier() -> None:
    """Then the conversation has moved."""
    floor = Floor(2)
    floor.balancer.affinity.note(KEYS, 1)
    floor.replicas[1].open_tokens, floor.replicas[1].num_open = 10 * SLACK, 1
    assert floor.pick(prompt=PROMPT) == 0
    floor.replicas[1].open_tokens = floor.replicas[1].num_open = 0
    assert floor.pick(prompt=PROMPT) == 0


def test_who_fails_again_and_again_is_set_aside_probed_and_comes_back() -> None:
    floor, now = Floor(2), 100.0
    floor.replicas[1].open_tokens = 50
    floor.fail(0, now)
    assert floor.ejections == [Ejection.FAILING]
    assert {floor.pick(now + FIRST_BAN / 2) for _ in range(5)} == {1}
    now += FIRST_BAN
    assert [floor.pick(now) for _ in range(3)] == [0, 1, 1]  # one probe
    floor.replicas[0].health.answered(now)
    assert floor.pick(now) == 0
    assert floor.replicas[0].is_well


def test_a_death_is_one_failure_however_many_requests_it_took() -> None:
    floor = Floor(2)
    floor.workers[0].closed.set()
    floor.fail(0, 0.0, times=100)
    assert not floor.ejections


def test_the_last_one_is_never_set_aside() -> None:
    floor = Floor(2)
    floor.fail(0, 0.0)
    floor.fail(1, 0.0, times=10)
    assert floor.ejections == [Ejection.FAILING]
    floor.workers[1].closed.set()
    assert floor.pick(1.0) == 0, "better one that was set aside than none"


def test_who_is_much_slower_than_its_peers_is_set_aside() -> None:
    floor, now = Floor(3), 100.0
    for _ in range(SLOW_WINDOWS):
        assert not floor.ejections
        for worker, pace in zip(floor.workers, (0.02, 0.2, 0.025), strict=True):
            worker.work(pace)
        now += LOOK_EVERY
        floor.pick(now)
    assert floor.ejections == [Ejection.SLOW]
    assert 1 not in {floor.pick(now) for _ in range(30)}


def test_a_worker_that_was_started_again_counts_anew() -> None:
    floor, now = Floor(2), 100.0
    for worker in floor.workers:
        worker.work(0.02, steps=1000)
    floor.pick(now)
    floor.workers[0].stats = WorkerStats()
    floor.workers[0].work(5.0)
    for _ in range(SLOW_WINDOWS + 1):
        now += LOOK_EVERY
        floor.pick(now)
    assert not floor.ejections
