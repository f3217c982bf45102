"""Seeded workloads: the same name, sizes and seed give the same requests on every machine.

Prompts are common English words, about one token each for a large vocabulary. A foreign client has no
tokenizer, so planned input sizes are approximate and the report shows the server's own counts; prompts of
token ids are exact.
A new workload of drawn sizes is one generator and one line in `SOURCES`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Protocol

from loadtest.records import BenchError, PlannedRequest

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
ORDINARY_TOKENS = range(32, 127)  # characters in byte vocabularies, ordinary tokens in every other


@dataclass(frozen=True, slots=True)
class RequestSize:
    """Tokens in (approximate) and out (an upper bound) of one request."""

    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.input_tokens}/{self.output_tokens}"


class WorkloadName(StrEnum):
    CHAT = "chat"
    FIXED = "fixed"
    UNIFORM = "uniform"
    SHARED_PREFIX = "shared-prefix"
    TRACE = "trace"


class Stream(StrEnum):
    """Independent random streams: warm-up prompts must not fill a prefix cache for measured ones."""

    WARMUP = "warmup"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Draw:
    """Which of a workload's endless sequences. `variant`: the same sizes in other words, so that no run of a sweep
    finds its prompts in the cache that another has filled."""

    seed: int
    stream: Stream = Stream.MEASURED
    variant: int = 0


class Workload(Protocol):
    @property
    def name(self) -> str: ...

    def plan(self, draw: Draw) -> Iterator[PlannedRequest]:
        """A deterministic sequence of requests; a trace's ends, all others do not."""

    def describe(self) -> dict[str, object]:
        """Its settings, for the report."""


def take(workload: Workload, count: int, draw: Draw) -> list[PlannedRequest]:
    """The first `count` requests, built ahead so that no text is made while the clock runs. Raises BenchError."""
    planned = list(islice(workload.plan(draw), count))
    if len(planned) < count:
        raise BenchError(f"the trace has {len(planned)} requests, {count} are asked for; lower --requests or --warmup")
    return planned


class Writer:
    """Writes prompts of a length, as words or as token ids. Variants have the same sizes of other words."""

    def __init__(self, rng: random.Random, variant: int, *, as_token_ids: bool) -> None:
        self._rng = rng
        self._as_token_ids = as_token_ids
        self._words, self._token_ids = list(WORDS), list(ORDINARY_TOKENS)
        if variant:
            shuffler = random.Random(f"words/{variant}")  # noqa: S311 - repeatable, not secret
            shuffler.shuffle(self._words)
            shuffler.shuffle(self._token_ids)

    def write(self, length: int) -> str | tuple[int, ...]:
        if self._as_token_ids:
            return tuple(self._rng.choices(self._token_ids, k=length))
        return " ".join(self._rng.choices(self._words, k=length))

    def join(self, *parts: str | tuple[int, ...]) -> str | tuple[int, ...]:
        """Prompts that this writer wrote, as one."""
        if self._as_token_ids:
            return tuple(token_id for part in parts if not isinstance(part, str) for token_id in part)
        return " ".join(part for part in parts if isinstance(part, str))


def random_of(name: str, draw: Draw) -> random.Random:
    return random.Random(f"{name}/{draw.stream}/{draw.seed}")  # noqa: S311 - repeatable, not secret


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


SOURCES: dict[WorkloadName, SizeSource] = {
    WorkloadName.CHAT: chat,
    WorkloadName.FIXED: fixed,
    WorkloadName.UNIFORM: uniform,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """Sizes from `SOURCES`, which `size` fixes or bounds."""

    name: WorkloadName
    size: RequestSize
    as_token_ids: bool = False

    def plan(self, draw: Draw) -> Iterator[PlannedRequest]:
        rng = random_of(self.name, draw)
        writer = Writer(rng, draw.variant, as_token_ids=self.as_token_ids)
        for size in SOURCES[self.name](rng, self.size):
            yield PlannedRequest(writer.write(size.input_tokens), size.input_tokens, size.output_tokens)

    def describe(self) -> dict[str, object]:
        return _sizes(self.size)


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Prompts of one size of which the first `prefix_tokens` are one of `num_prefixes`: system prompts, few-shot
    examples. A prefix cache saves them, from the second time on."""

    size: RequestSize
    prefix_tokens: int
    num_prefixes: int
    as_token_ids: bool = False
    name = WorkloadName.SHARED_PREFIX

    def __post_init__(self) -> None:
        if not 0 < self.prefix_tokens < self.size.input_tokens:
            bound = f"the {self.size.input_tokens} of --input-tokens"
            raise BenchError(f"--prefix-tokens {self.prefix_tokens}: expected less than {bound}")

    def plan(self, draw: Draw) -> Iterator[PlannedRequest]:
        rng = random_of(self.name, draw)
        writer = Writer(rng, draw.variant, as_token_ids=self.as_token_ids)
        prefixes = [writer.write(self.prefix_tokens) for _ in range(self.num_prefixes)]
        own = self.size.input_tokens - self.prefix_tokens
        while True:
            prompt = writer.join(rng.choice(prefixes), writer.write(own))
            yield PlannedRequest(prompt, self.size.input_tokens, self.size.output_tokens)

    def describe(self) -> dict[str, object]:
        return {**_sizes(self.size), "prefix_tokens": self.prefix_tokens, "prefixes": self.num_prefixes}


def _sizes(size: RequestSize) -> dict[str, object]:
    return {"input_tokens": size.input_tokens, "output_tokens": size.output_tokens}
