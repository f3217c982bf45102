"""The functions under random arguments, valid and malformed, without the Python that checks them before."""

from __future__ import annotations

import random
from collections import Counter as Tally
from typing import Any

from quota.encoding import encode
from quota.ledger import LEASE_MS, IntegrityError
from quota.levels import Layer, Level, Limits
from quota.lua import load_library
from quota.redis import RedisLedger
from tests.quota.conftest import Clock
from tests.quota.digest import digest
from tests.scale import cut, publish

CALLS = cut(3_000, 100_000)
CALLS_AN_ACCOUNT = 300
FULL = Limits(rpm=100, tpm=60_000, requests_per_day=100, tokens_per_day=1000, tokens_per_month=5000, concurrent=10)
LAYERS = encode((Layer(Level.ACCOUNT, "", FULL), Layer(Level.KEY, "k1", FULL))).text.decode()
JUNK = ["", "nan", "inf", "-inf", "-0", "1e308", "-1", "1.5", "0x10", str(2**53 + 1), "9" * 400, "x", "\0", "{", "[]"]
JUNK_LAYERS = [
    *("", "[", "{}", "null", "3", "[1]", '[["a"],2]'),
    *('["key:k1",5]', '["key:k1",1,1,1,1,1,null]', '["key:k1",1,1,1,1,1,1e400]', '["key:k1",-1,2.5,3,4,5,6]'),
    *("[5,1,2,3,4,5,6]", '["key:k1",1,"x",3,4,5,6]', '["key:k1",1,2,3,4,5,6,"key:k1",1,2,3,4,5,6]'),
]
JUNK_ROWS = ["", "[[]]", '[["a"]]', '[["account:",20162,1,0.5]]', '[["account:",1e300,1,1]]', "[1]", "{}"]
STEPS = ("reserve", "reserve", "reserve", "finish", "renew", "adopt", "peek", "known", "restore", "usage")


def random_call(rng: random.Random, now: int) -> tuple[str, list[Any]]:
    """A step and its arguments: mostly right, one of them often junk."""
    step = rng.choice(STEPS)
    lease, tokens = f"r{rng.randrange(8)}", str(rng.choice([0, 1, 50, 10**11, 10**15]))
    layers = rng.choice([LAYERS, LAYERS, "[]", rng.choice(JUNK_LAYERS)])
    day = now // 86_400_000 - rng.randrange(3)
    rows = rng.choice([f'[["account:",{day},2,{tokens}]]', "[]", rng.choice(JUNK_ROWS)])
    opening = rng.choice([[], ["0", "epoch"], [str(now - rng.randrange(90_000)), "epoch"]])
    arguments = {
        "reserve": [lease, tokens, layers, rng.choice("0001")],
        "finish": [lease, tokens, rng.choice(["settled", "released"])],
        "renew": [lease, tokens, f"r{rng.randrange(8)}", tokens],
        "adopt": ["2500", rng.choice(["open", "settled"]), lease, tokens, str(now - rng.randrange(60_000)), layers],
        "peek": [layers],
        "restore": [rows, *opening],
    }.get(step, [])
    arguments = [str(now), "nonce", *arguments]
    if rng.random() < 0.4:
        place = rng.randrange(len(arguments))
        arguments[place] = rng.choice(JUNK) or (
            "" if place else "x"
        )  # "" is the server's own clock, years ahead of ours
    if rng.random() < 0.1:
        arguments = arguments[: rng.randrange(len(arguments) + 1)]
    return step, arguments


async def test_random_calls_change_nothing_when_they_fail(redis_url: str, prefix: str, clock: Clock) -> None:
    """Check 4: a function is not rolled back, so an error must come before its first write."""
    ledger = RedisLedger(f"{redis_url}/1", prefix=prefix, clock=clock, timeout=5)
    rng, library = random.Random(4), load_library(LEASE_MS, audit=True)
    outcomes: Tally[tuple[str, bool]] = Tally()
    before, wrong = b"", []
    for n in range(CALLS):
        if n % CALLS_AN_ACCOUNT == 0:  # the one before keeps what it has, and a new one is not open yet
            await ledger.check_integrity()
            await ledger._link.ask("FLUSHDB")
            before = b""
        step, arguments = random_call(rng, clock.now)
        try:
            await ledger._link.run(library, step, f"{ledger._prefix}:{{acme}}:e", *arguments)
            failed = False
        except IntegrityError:
            failed = True
        after = await digest(ledger)
        if failed and after != before:
            wrong.append((step, arguments))
        outcomes[step, failed] += 1
        before = after
        clock.advance(rng.choice([0, 1, 100, 5000]))
    publish(4, "random calls of the functions", calls=CALLS, errors_after_a_first_write=len(wrong))
    assert wrong == []
    assert min(outcomes[step, failed] for step in STEPS[2:] for failed in (False, True)) > CALLS // 200, outcomes
    await ledger.close()
