"""Has something become worse? Ratios of a saved run against a new one's, never seconds: machines differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadtest.peers.ratios import Ratio
from loadtest.records import BenchError


class Saved(msgspec.Struct):
    """As `as_json` writes it."""

    median: float
    more_is_better: bool


class _Document(msgspec.Struct):
    ratios: dict[str, Saved]


def as_json(ratios: Sequence[Ratio]) -> dict[str, object]:
    return {
        ratio.name: {
            "median": ratio.spread.median,
            "low": ratio.spread.low,
            "high": ratio.spread.high,
            "rounds": ratio.spread.count,
            "more_is_better": ratio.more_is_better,
        }
        for ratio in ratios
    }


def read(path: Path) -> dict[str, Saved]:
    """Of a JSON report. Raises BenchError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Document).ratios
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is no report of bench-peers: {error}") from None


def worse(before: Mapping[str, Saved], now: Sequence[Ratio], tolerance: float) -> list[str]:
    """A line for each ratio of both runs that is worse by more than `tolerance`, as a share of what it was. Raises
    BenchError where they have none in common."""
    both = [(before[ratio.name], ratio) for ratio in now if ratio.name in before]
    if not both:
        raise BenchError("the two runs have no ratio in common")
    return [
        f"{ratio.name}: {old.median:.2f} -> {ratio.spread.median:.2f}"
        for old, ratio in both
        if _is_worse(old.median, ratio.spread.median, tolerance, more_is_better=ratio.more_is_better)
    ]


def _is_worse(old: float, new: float, tolerance: float, *, more_is_better: bool) -> bool:
    return new < old * (1 - tolerance) if more_is_better else new > old * (1 + tolerance)
