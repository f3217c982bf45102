"""The figures of a run that reports compare, and their spread over repetitions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.loads import Load
from loadtest.measure import SLO, Distribution, Summary, decode_rate, summarize
from loadtest.roofline import Roofline
from loadtest.sweep import Run


@dataclass(frozen=True, slots=True)
class Measured:
    """A run in numbers. `roofline`: the share of what the machine allows, where its facts are known."""

    run: Run
    summary: Summary
    ceiling_tokens_per_s: float | None = None

    @classmethod
    def of(cls, run: Run, slo: SLO, roofline: Roofline | None = None) -> "Measured":
        summary = summarize(run.result.records, slo)
        return cls(run, summary, roofline.tokens_per_s(run.result.records) if roofline else None)


@dataclass(frozen=True, slots=True)
class Figure:
    """`scale` turns `value`, of seconds and shares, into `unit`. `digits` after the point."""

    key: str
    label: str
    unit: str
    value: Callable[[Measured], float | None]
    scale: float = 1.0
    digits: int = 1

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{value * self.scale:,.{self.digits}f}"


def _latency(name: str, label: str) -> Iterable[Figure]:
    def of(percent: str) -> Callable[[Measured], float | None]:
        def value(measured: Measured) -> float | None:
            samples: Distribution | None = getattr(measured.summary, name)
            return None if samples is None else float(getattr(samples, percent))

        return value

    for percent in ("p50", "p90", "p99"):
        yield Figure(f"{name.removesuffix('_s')}_{percent}_s", f"{label} {percent}", "ms", of(percent), 1000)


def _padding_waste(measured: Measured) -> float | None:
    engine = measured.run.result.engine
    return engine.padding_waste if engine else None


def _ungrouped_waste(measured: Measured) -> float | None:
    engine = measured.run.result.engine
    return engine.ungrouped_waste if engine else None


def _batch_size(measured: Measured) -> float | None:
    engine = measured.run.result.engine
    return engine.batch_size if engine else None


def _cached(measured: Measured) -> float | None:
    engine = measured.run.result.engine
    prompt = engine.prefill_tokens + engine.cached_tokens if engine else 0
    return engine.cached_tokens / prompt if engine and prompt else None


def _roofline_share(measured: Measured) -> float | None:
    ceiling = measured.ceiling_tokens_per_s
    return measured.summary.output_tokens_per_s / ceiling if ceiling else None


FIGURES: dict[str, Figure] = {
    figure.key: figure
    for figure in (
        Figure("output_tokens_per_s", "Output", "tok/s", lambda m: m.summary.output_tokens_per_s),
        Figure("decode_tokens_per_s", "Decode", "tok/s", lambda m: decode_rate(m.run.result.records)),
        Figure("requests_per_s", "Answers", "req/s", lambda m: m.summary.requests_per_s, digits=2),
        Figure("goodput_per_s", "Goodput", "req/s", lambda m: m.summary.goodput_per_s, digits=2),
        Figure("in_flight", "In flight", "", lambda m: m.summary.in_flight),
        *_latency("ttft_s", "TTFT"),
        *_latency("itl_s", "ITL"),
        *_latency("tpot_s", "TPOT"),
        *_latency("e2el_s", "E2EL"),
        Figure("batch_size", "Batch", "seqs", _batch_size),
        Figure("padding_waste", "Padding waste", "%", _padding_waste, 100),
        Figure("ungrouped_waste", "Without buckets", "%", _ungrouped_waste, 100),
        Figure("cached_share", "Prompt cached", "%", _cached, 100),
        Figure("roofline_share", "Of the roofline", "%", _roofline_share, 100),
    )
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Over repetitions: the median, and how far they lie apart. Few runs have no honest interval of confidence."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """None where a run has no value: what the others have is not the same thing."""
        known = list(values)
        if not known or any(value is None for value in known):
            return None
        numbers = [value for value in known if value is not None]
        return cls(median(numbers), min(numbers), max(numbers), len(numbers))


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """All repetitions of one server at one load."""

    load: Load
    subject: int
    runs: tuple[Measured, ...]

    def spread(self, key: str) -> Spread | None:
        return Spread.of(FIGURES[key].value(measured) for measured in self.runs)


def points(measured: Sequence[Measured]) -> list[LoadPoint]:
    """In the order in which the loads and servers were first run. Interrupted runs are left out: they are shorter."""
    groups: dict[tuple[Load, int], list[Measured]] = {}
    for one in measured:
        if not one.run.result.interrupted:
            groups.setdefault((one.run.load, one.run.plan.subject), []).append(one)
    return [LoadPoint(load, subject, tuple(runs)) for (load, subject), runs in groups.items()]
