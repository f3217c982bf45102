"""A report's contents: every run, the figures of every load, and the JSON that keeps them. Seconds, as names say."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from loadtest.client import shown
from loadtest.comparison import Ratio, ratios
from loadtest.figures import FIGURES, LoadPoint, Measured, points
from loadtest.loads import as_json
from loadtest.measure import CURVE_PERCENTS, SLO
from loadtest.notes import notes_of
from loadtest.runner import BenchConfig

FORMAT_VERSION = 2
METHOD = (
    "Percentiles interpolate linearly between closest ranks. TTFT, ITL (gaps of all requests pooled), TPOT = "
    "(E2EL - TTFT) / (output tokens - 1) and E2EL count from the moment at which a request was due: in an open loop "
    "the arrival that was drawn, whenever it was sent. A load's figure is the median over its repetitions, with the "
    "lowest and the highest; runs of several loads and servers take turns."
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that a report shows beside its figures, as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarRow:
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BarGroup:
    """Bars that a page draws beside its charts, each before `ceiling`."""

    title: str
    rows: tuple[BarRow, ...]
    note: str = ""
    ceiling: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """`subjects` names the servers, by their place; one for a bench, several for a comparison with the first."""

    title: str
    subjects: tuple[str, ...]
    measured: tuple[Measured, ...]
    slo: SLO = field(default_factory=SLO)
    tables: tuple[Table, ...] = ()
    bars: tuple[BarGroup, ...] = ()
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def points(self) -> list[LoadPoint]:
        return points(self.measured)

    @property
    def ratios(self) -> list[Ratio]:
        return ratios(self.measured) if len(self.subjects) > 1 else []

    @property
    def notes(self) -> list[str]:
        """What a reader must know before trusting the numbers; each once."""
        return list(dict.fromkeys(note for one in self.measured for note in notes_of(one)))

    @property
    def config(self) -> BenchConfig:
        """Of the first run."""
        return self.measured[0].run.plan.config


def machine() -> dict[str, object]:
    """Where the load generator ran. Its name stays out of it."""
    return {"system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(), **versions()}


def versions() -> dict[str, object]:
    try:
        penstock = version("penstock")
    except PackageNotFoundError:  # this room runs from a bare checkout too
        penstock = "unknown"
    return {"python": platform.python_version(), "penstock": penstock}


def as_document(report: Report) -> dict[str, object]:
    """Plain values only; holds neither a key nor a URL's password."""
    return {
        "format_version": FORMAT_VERSION,
        "title": report.title,
        "created": report.created.isoformat(timespec="seconds"),
        "generator": machine(),
        "method": METHOD,
        "curve_percents": list(CURVE_PERCENTS),
        "config": _config(report),
        "subjects": list(report.subjects),
        "loads": [_point(point) for point in report.points],
        "comparison": [_ratio(ratio) for ratio in report.ratios],
        "tables": [asdict(table) for table in report.tables],
        "runs": [_run(one) for one in report.measured],
        "notes": report.notes,
        "interrupted": any(one.run.result.interrupted for one in report.measured),
    }


def _config(report: Report) -> dict[str, object]:
    config = report.config
    return {
        "endpoint": config.target.endpoint.value,
        "ignore_eos": config.target.ignore_eos,
        "workload": str(config.workload.name),
        **config.workload.describe(),
        "requests": config.num_requests,
        "warmup": config.num_warmup,
        "seed": config.seed,
        "timeout_s": config.timeout_s,
        "slo": asdict(report.slo),
    }


def _point(point: LoadPoint) -> dict[str, object]:
    spreads = {key: point.spread(key) for key in FIGURES}
    return {
        "load": as_json(point.load),
        "subject": point.subject,
        "figures": {key: asdict(spread) for key, spread in spreads.items() if spread is not None},
    }


def _ratio(ratio: Ratio) -> dict[str, object]:
    return {
        "load": as_json(ratio.load),
        "subject": ratio.subject,
        "to": 0,
        "figures": {key: asdict(spread) for key, spread in ratio.spreads.items()},
    }


def _run(measured: Measured) -> dict[str, object]:
    run, result = measured.run, measured.run.result
    return {
        "load": as_json(run.load),
        "subject": run.plan.subject,
        "repetition": run.plan.repetition,
        "seed": run.plan.config.seed,
        "base_url": shown(run.plan.config.target.base_url),
        "model": result.model,
        "summary": asdict(measured.summary),
        "engine": asdict(result.engine) if result.engine else None,
        "ceiling_tokens_per_s": measured.ceiling_tokens_per_s,
        "client_cpu_share": result.client_cpu_share,
        "interrupted": result.interrupted,
    }


def subject_lines(subjects: Sequence[str]) -> list[str]:
    """With a letter each, where there are several."""
    return list(subjects) if len(subjects) == 1 else [f"{letter(i)}: {name}" for i, name in enumerate(subjects)]


def letter(subject: int) -> str:
    return chr(ord("A") + subject)
