"""Seeded workloads: the same name, sizes and seed give the same requests on every machine.

Prompts are common English words, about one token each for a large vocabulary. A foreign client has no
tokenizer, so planned input sizes are approximate and the report shows the server's own counts.
A new workload is one generator of sizes and one line in `WORKLOADS`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from loadtest.records import PlannedRequest

_COMMON_WORDS = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an
they which one you were all her she there would their we him been has when who will no more if out so
up said what its about than into them can only other time new some could these two may first then do
any like my now over such our man me even most made after also did many off before must well back
through years much where your way down should because long each just state those people too mr how
little good world make very year still see own work men day get here old life both between being
under three never know same last another while us might great go come since against right came take
used himself few house use place during high without again home around small however found part
school thought went say once general upon war every left does got united number hand course water
until always public put end government far night light side river stone gate wheel power field
"""
WORDS = tuple(_COMMON_WORDS.split())


@dataclass(frozen=True, slots=True)
class RequestSize:
    """Tokens in (approximate) and out (an upper bound) of one request."""

    input_tokens: int
    output_tokens: int


class WorkloadName(StrEnum):
    CHAT = "chat"
    FIXED = "fixed"
    UNIFORM = "uniform"


class Stream(StrEnum):
    """Independent random streams: warm-up prompts must not fill a prefix cache for measured ones."""

    WARMUP = "warmup"
    MEASURED = "measured"


SizeSource = Callable[[random.Random, RequestSize], Iterator[RequestSize]]


def fixed(rng: random.Random, size: RequestSize) -> Iterator[RequestSize]:
    """Exactly `size`, for ever."""
    while True:
        yield size


def uniform(rng: random.Random, size: RequestSize) -> Iterator[RequestSize]:
    """Each way uniform from 100 (a tenth of the bound where that is less) to the bound in `size`."""

    def draw(bound: int) -> int:
        return rng.randint(min(100, max(1, bound // 10)), bound)

    while True:
        yield RequestSize(draw(size.input_tokens), draw(size.output_tokens))


def chat(rng: random.Random, size: RequestSize) -> Iterator[RequestSize]:
    """Chat-like: input lognormal (mu 4.59, sigma 1.2), output exponential (mean 179), clipped 4..bound."""

    def clip(value: float, bound: int) -> int:
        return min(max(4, round(value)), bound)

    while True:
        drawn_input, drawn_output = rng.lognormvariate(4.59, 1.2), rng.expovariate(1 / 179)
        yield RequestSize(clip(drawn_input, size.input_tokens), clip(drawn_output, size.output_tokens))


@dataclass(frozen=True, slots=True)
class Workload:
    """A source of sizes, and the sizes (fixed) or upper bounds (drawn) it takes unless told others."""

    sizes: SizeSource
    default: RequestSize


WORKLOADS = {
    WorkloadName.CHAT: Workload(chat, RequestSize(1024, 1024)),
    WorkloadName.FIXED: Workload(fixed, RequestSize(128, 128)),
    WorkloadName.UNIFORM: Workload(uniform, RequestSize(1024, 1024)),
}


def plan(
    name: WorkloadName, size: RequestSize, *, seed: int, stream: Stream = Stream.MEASURED
) -> Iterator[PlannedRequest]:
    """An endless, deterministic sequence of requests."""
    rng = random.Random(f"{name}/{stream}/{seed}")  # noqa: S311 - repeatable, not secret
    for drawn in WORKLOADS[name].sizes(rng, size):
        prompt = " ".join(rng.choices(WORDS, k=drawn.input_tokens))
        yield PlannedRequest(prompt, drawn.input_tokens, drawn.output_tokens)


def take(
    name: WorkloadName, size: RequestSize, count: int, *, seed: int, stream: Stream = Stream.MEASURED
) -> list[PlannedRequest]:
    """The first `count` requests, built ahead so that no text is made while the clock runs."""
    return list(islice(plan(name, size, seed=seed, stream=stream), count))
