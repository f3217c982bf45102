"""The rounds as a table, medians over the rounds, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from loadtest.gateway.load import Load, Part

FLOOR, PENSTOCK = "floor", "penstock"
Parts = Mapping[str, Sequence[Part]]
"""By the subject's name, one a round."""

FIGURES: tuple[tuple[str, Callable[[Part], float], str], ...] = (
    ("answers a second", lambda part: part.requests.per_s, "{:.0f}"),
    ("CPU of an answer, ms", lambda part: 1e3 * part.requests.cpu, "{:.2f}"),
    ("its time p50, ms", lambda part: 1e3 * part.requests.p50, "{:.2f}"),
    ("its time p99, ms", lambda part: 1e3 * part.requests.p99, "{:.2f}"),
    ("its bytes", lambda part: part.requests.answer_bytes, "{:.0f}"),
    ("streamed tokens a second", lambda part: part.streams.tokens_per_s, "{:.0f}"),
    ("CPU of a token, µs", lambda part: 1e6 * part.streams.cpu, "{:.1f}"),
    ("its events", lambda part: part.streams.events, "{:.2f}"),
    ("its bytes", lambda part: part.streams.token_bytes, "{:.0f}"),
)


def table(load: Load, delay_ms: float, parts: Parts) -> str:
    names = list(parts)
    lines = [
        f"{load.requests} answers of {load.answer_tokens} tokens at {load.rate:g}/s; {load.streams} streams of "
        f"{load.stream_tokens} tokens, one every {delay_ms:g} ms each; medians of {len(parts[FLOOR])} rounds",
        f"{'':26}" + "".join(f"{name:>12}" for name in names),
    ]
    for title, figure, form in FIGURES:
        cells = (form.format(median(map(figure, parts[name]))) for name in names)
        lines.append(f"{title:26}" + "".join(f"{cell:>12}" for cell in cells))
    for percent, figure in ((50, _p50), (99, _p99)):
        cells = (f"{1e3 * added:.2f}" for added in (_added(figure, parts, name) for name in names))
        lines.append(f"{f'added to p{percent}, ms':26}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join([*lines, *(_ratio(name, parts) for name in names if name not in (FLOOR, PENSTOCK))])


def _p50(part: Part) -> float:
    return part.requests.p50


def _p99(part: Part) -> float:
    return part.requests.p99


def _added(figure: Callable[[Part], float], parts: Parts, name: str) -> float:
    """What a subject takes longer than the floor of its round."""
    return median(figure(own) - figure(bare) for own, bare in zip(parts[name], parts[FLOOR], strict=True))


def ratios(name: str, parts: Parts) -> tuple[float, float]:
    """Processor time of an answer and of a streamed token, of a subject to Penstock's in the same round."""
    rounds = list(zip(parts[name], parts[PENSTOCK], strict=True))
    return (
        median(theirs.requests.cpu / ours.requests.cpu for theirs, ours in rounds),
        median(theirs.streams.cpu / ours.streams.cpu for theirs, ours in rounds),
    )


def _ratio(name: str, parts: Parts) -> str:
    of_answers, of_tokens = ratios(name, parts)
    return f"{name} takes {of_answers:.1f} times Penstock's CPU for an answer, {of_tokens:.1f} times for a token"


def as_document(load: Load, delay_ms: float, parts: Parts, versions: Mapping[str, str]) -> dict[str, Any]:
    """Every round; seconds."""
    rounds = {name: [asdict(part) for part in of_subject] for name, of_subject in parts.items()}
    others = [name for name in parts if name not in (FLOOR, PENSTOCK)]
    return {
        "load": asdict(load) | {"delay_ms": delay_ms},
        "versions": dict(versions),
        "rounds": rounds,
        "added_p50_s": {name: _added(_p50, parts, name) for name in parts},
        "added_p99_s": {name: _added(_p99, parts, name) for name in parts},
        "cpu_ratios": {name: dict(zip(("answer", "token"), ratios(name, parts), strict=True)) for name in others},
    }
