import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching import queue
from batching.queue import AdmissionQueue, DrainRate, ServedTokens
from batching.sequence import Sequence
from engines.types import BACKGROUND_PRIORITY
from tests.fakes import FOREVER, make_request

FOREGROUND = make_request(account="busy")
BACKGROUND = make_request(account="busy", priority=BACKGROUND_PRIORITY)


class Waiting:
    """A queue, and sequences to put in it."""

    def __init__(self, max_waiting: int = 10_000, timeout: float = FOREVER) -> None:
        self.queue = AdmissionQueue(max_waiting, timeout)
        self.count = 0

    def put(self, account: str = "a", tokens: int = 1, **options: float) -> Sequence:
        request = make_request(f"r{self.count}", [0] * tokens, account=account, **options)
        sequence = Sequence(self.count, request, request.sampling.max_tokens, list(request.prompt_token_ids))
        self.count += 1
        self.queue.put(sequence)
        return sequence

    def start(self, now: float = 0.0, output_tokens: int = 0) -> Sequence:
        """Serve whoever is next, whole."""
        sequence = self.queue.peek()
        assert sequence is not None
        self.queue.pop(sequence, now)
        account = sequence.request.account
        self.queue.served.charge(account, sequence.num_prompt_tokens, output_tokens)
        return sequence


# --- order


def test_arrival_is_the_order_within_an_account():
    waiting = Waiting()
    sequences = [waiting.put() for _ in range(5)]
    assert [waiting.start() for _ in range(5)] == sequences
    assert waiting.queue.peek() is None


def test_priority_classes_come_one_after_the_other():
    waiting = Waiting()
    for priority in (3, 0, -2, 3, 0):
        waiting.put(priority=priority)
    assert [waiting.start().request.priority for _ in range(5)] == [-2, 0, 0, 3, 3]


@settings(max_examples=40)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 200), st.integers(0, 200))
def test_two_backlogged_accounts_are_served_alike(small, big, small_output, big_output):
    waiting = Waiting()
    for _ in range(100):
        waiting.put("small", small)
        waiting.put("big", big)
    served, largest = waiting.queue.served, max(small + 2 * small_output, big + 2 * big_output)
    for _ in range(100):
        account = waiting.queue.peek().request.account
        waiting.start(output_tokens=small_output if account == "small" else big_output)
        assert abs(served["small"] - served["big"]) <= largest


def test_a_light_account_passes_a_heavy_one():
    waiting = Waiting()
    for _ in range(100):
        waiting.put("heavy", 50)
    for _ in range(10):
        waiting.start()
    waiting.put("light", 50)
    assert "light" in [waiting.start().request.account for _ in range(2)]


def test_an_idle_account_saves_nothing_up():
    waiting = Waiting()
    waiting.put("away", 10)
    waiting.start()
    for _ in range(200):
        waiting.put("busy", 100)
    for _ in range(100):
        waiting.start()
    for _ in range(50):
        waiting.put("away", 100)
    turns = [waiting.start().request.account for _ in range(40)]
    assert 19 <= turns.count("away") <= 21


def test_nor_while_the_queue_is_empty():
    """The busy account is served without waiting; when both come at once, the other has no claim to all of it."""
    waiting = Waiting()
    waiting.put("away", 10)
    waiting.start()
    for _ in range(100):
        waiting.put("busy", 100)
        waiting.start()
    for _ in range(50):
        waiting.put("away", 100)
        waiting.put("busy", 100)
    turns = [waiting.start().request.account for _ in range(40)]
    assert 19 <= turns.count("away") <= 21


def test_one_that_returns_is_not_starved_by_newcomers():
    waiting = Waiting()
    for _ in range(100):
        waiting.put("old", 1000)
        waiting.start()
    for _ in range(30):
        waiting.put("new", 100)
    waiting.start()
    for _ in range(30):
        waiting.put("old", 100)
    turns = [waiting.start().request.account for _ in range(20)]
    assert 9 <= turns.count("old") <= 11


def test_accounts_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(queue, "MAX_REMEMBERED_ACCOUNTS", 10)
    served = ServedTokens()
    for number in range(100):
        served.lift(f"a{number}", [])
        served.charge(f"a{number}", 1)
    assert len(served) == 10
    served.lift("a90", [])
    for number in range(9):
        served.lift(f"b{number}", [])
    assert served["a90"] == 1, "those who came last are kept"
    assert served["a99"] == 0


# --- expiry


def test_expiry_is_the_timeout_or_the_deadline_whichever_is_first():
    waiting = Waiting(timeout=10)
    slow, hurried, late = waiting.put(arrival=0), waiting.put(arrival=0, deadline=4), waiting.put(arrival=3)
    assert waiting.queue.pop_expired(3.9) == []
    assert waiting.queue.pop_expired(4.0) == [hurried]
    assert waiting.queue.pop_expired(10.0) == [slow]
    assert waiting.queue.pop_expired(99.0) == [late]
    assert len(waiting.queue) == 0


def test_who_has_left_does_not_expire():
    waiting = Waiting(timeout=10)
    started, aborted, stays = waiting.put(), waiting.put(), waiting.put()
    waiting.queue.pop(started, 1.0)
    assert waiting.queue.remove(aborted.request.request_id) is aborted
    assert waiting.queue.remove(aborted.request.request_id) is None
    assert waiting.queue.pop_expired(99.0) == [stays]


# --- bounds


def test_full_is_full():
    waiting = Waiting(max_waiting=2)
    waiting.put()
    assert not waiting.queue.is_full(FOREGROUND)
    waiting.put()
    assert waiting.queue.is_full(FOREGROUND)
    waiting.start()
    assert not waiting.queue.is_full(FOREGROUND)


def test_the_background_takes_no_place_of_others_in_the_queue():
    waiting = Waiting(max_waiting=2)
    for _ in range(2):
        waiting.put(priority=BACKGROUND_PRIORITY)
    assert waiting.queue.is_full(BACKGROUND)
    assert not waiting.queue.is_full(FOREGROUND)
    waiting.put()
    waiting.queue.check_integrity()


def test_the_background_waits_up_to_its_deadline():
    waiting = Waiting(timeout=10)
    waiting.put(priority=BACKGROUND_PRIORITY - 1)
    patient = waiting.put(priority=BACKGROUND_PRIORITY, deadline=100)
    assert len(waiting.queue.pop_expired(99)) == 1
    assert waiting.queue.pop_expired(100) == [patient]


def test_what_an_account_was_served_in_the_background_counts_there_alone():
    waiting = Waiting()
    for account in ("busy", "quiet"):
        for priority in (0, BACKGROUND_PRIORITY):
            waiting.put(account, priority=priority)
    waiting.queue.charge(BACKGROUND, input_tokens=1000)  # of "busy"
    assert waiting.queue.peek(is_background=False).request.account == "busy"
    assert waiting.queue.peek(is_background=True).request.account == "quiet"
    assert waiting.queue.peek().request.priority == 0


def test_memory_does_not_grow_with_traffic():
    waiting, rng = Waiting(), random.Random(1)
    alive = [waiting.put(f"a{i % 7}") for i in range(50)]
    for number in range(100_000):
        alive.append(waiting.put(f"a{number % 7}", priority=number % 3))
        leaving = alive.pop(rng.randrange(len(alive)))
        waiting.queue.remove(leaving.request.request_id)
        assert len(waiting.queue._expiries) <= 2 * 51 + 65
    assert len(waiting.queue) == 50
    waiting.queue.check_integrity()
    for sequence in alive:
        waiting.queue.remove(sequence.request.request_id)
    assert not waiting.queue._classes


def expiry(request):
    return request.deadline if request.is_background else min(request.arrival + 20, request.deadline)


@given(st.data())
def test_integrity_under_random_calls(data):
    waiting, alive = Waiting(timeout=20), {}
    for now in range(data.draw(st.integers(0, 40))):
        call = data.draw(st.sampled_from(["put", "put", "start", "remove", "expire"]))
        if call == "put":
            priority, account = (
                data.draw(st.sampled_from([0, 1, BACKGROUND_PRIORITY])),
                data.draw(st.sampled_from("abc")),
            )
            patience = data.draw(st.integers(0, 30))
            sequence = waiting.put(account, arrival=now, deadline=now + patience, priority=priority)
            alive[sequence.request.request_id] = sequence
        elif call == "start" and alive:
            started = waiting.start(now)
            assert started.request.priority == min(s.request.priority for s in alive.values())
            del alive[started.request.request_id]
        elif call == "remove" and alive:
            request_id = data.draw(st.sampled_from(sorted(alive)))
            assert waiting.queue.remove(request_id) is alive.pop(request_id)
        elif call == "expire":
            expired = {s.request.request_id for s in waiting.queue.pop_expired(now)}
            due = {i for i, s in alive.items() if expiry(s.request) <= now}
            assert expired == due
            for request_id in expired:
                del alive[request_id]
        assert len(waiting.queue) == len(alive)
        waiting.queue.check_integrity()


# --- retry-after


@pytest.mark.parametrize(("leave_at_once", "every"), [(1, 0.05), (1, 0.5), (8, 2.0), (64, 5.0)])
def test_retry_after_is_true_of_a_steady_drain(leave_at_once, every):
    """`leave_at_once` requests leave every `every` seconds, after those that filled the engine at time 0."""
    waiting = Waiting()
    for _ in range(1000):
        waiting.put()
    for _ in range(64):
        waiting.start(now=0.0)
    now = 0.0
    for _ in range(8):
        now += every
        for _ in range(leave_at_once):
            waiting.start(now)
    rate = leave_at_once / every
    true_seconds = len(waiting.queue) / 10 / rate
    assert waiting.queue.retry_after_ms(now) == pytest.approx(1000 * true_seconds, rel=0.05)


def test_idle_hours_do_not_count():
    waiting = Waiting()
    for hour in range(60):
        waiting.put(arrival=3600.0 * hour)
        waiting.start(now=3600.0 * hour)
    now = 3600.0 * 60
    for _ in range(100):
        waiting.put(arrival=now)
    assert waiting.queue.retry_after_ms(now) == 1000, "nothing is known yet of this rush"
    waiting.start(now)
    for step in range(1, 11):
        waiting.start(now + step)
    assert waiting.queue.retry_after_ms(now + 10) == pytest.approx(8000, rel=0.05)


def test_when_nobody_leaves_it_takes_as_long_again():
    waiting = Waiting()
    for _ in range(100):
        waiting.put(arrival=0.0)
    assert waiting.queue.retry_after_ms(25.0) == 25_000
    assert waiting.queue.retry_after_ms(3600.0) == 60_000, "at most a minute"


def test_retry_after_of_an_empty_queue():
    assert AdmissionQueue(0, 10).retry_after_ms(5.0) == 1000


def test_the_rate_is_of_lately():
    drain = DrainRate(window=4)
    for now in range(100):
        drain.record(float(now))
    for now in range(200, 204):
        drain.record(100.0 + 10 * (now - 200))
    assert drain.seconds_for(1, 130.0) == pytest.approx(10.0)
