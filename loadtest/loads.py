"""How requests arrive: a closed loop of users, or an open loop whose moments do not depend on the answers."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from loadtest.records import BenchError, PlannedRequest


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` users, each of whom sends the next request when the last has ended. `mix`: what they send, in
    reports on several workloads."""

    concurrency: int
    mix: str = ""

    @property
    def level(self) -> float:
        return self.concurrency

    def __str__(self) -> str:
        return f"{self.concurrency} concurrent" + (f", {self.mix}" if self.mix else "")


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Gaps from Gamma(shape `burstiness`, mean 1 / `rate`): 1 is Poisson, less comes in bursts, more is even."""

    rate: float  # requests a second
    burstiness: float = 1.0

    @property
    def level(self) -> float:
        return self.rate

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s" + (f", burstiness {self.burstiness:g}" if self.burstiness != 1 else "")


@dataclass(frozen=True, slots=True)
class TraceArrivals:
    """The trace's own moments, `speed` times as fast."""

    speed: float = 1.0

    @property
    def level(self) -> float:
        return self.speed

    def __str__(self) -> str:
        return f"the trace at {self.speed:g} times its speed"


OpenLoop = GammaArrivals | TraceArrivals
Load = ClosedLoop | OpenLoop
KINDS: dict[type[Load], str] = {ClosedLoop: "closed", GammaArrivals: "gamma", TraceArrivals: "trace"}
AXES: dict[type[Load], str] = {
    ClosedLoop: "requests in flight",
    GammaArrivals: "requests arriving per second",
    TraceArrivals: "speed of the trace",
}


def as_json(load: Load) -> dict[str, object]:
    return {"kind": KINDS[type(load)], **asdict(load)}


def offsets_s(load: OpenLoop, requests: Sequence[PlannedRequest], seed: str) -> list[float]:
    """When each request is due, from the start of the run; the first of a trace at once. The seed decides."""
    if isinstance(load, TraceArrivals):
        return [_moment(request) / load.speed for request in requests]
    rng = random.Random(f"arrivals/{seed}")  # noqa: S311 - repeatable, not secret
    scale = 1 / (load.rate * load.burstiness)
    return list(accumulate(rng.gammavariate(load.burstiness, scale) for _ in requests))


def _moment(request: PlannedRequest) -> float:
    if request.at_s is None:
        raise BenchError("only a trace has moments of its own to replay; name one by --trace")
    return request.at_s
