"""Servers side by side: each run of a later one over the run of the first that it followed.

On a shared machine the speed of one run says little; the ratio of two that follow each other says more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.figures import FIGURES, Measured, Spread
from loadtest.loads import Load

COMPARED = ("output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s", "e2el_p50_s")


@dataclass(frozen=True, slots=True)
class Ratio:
    """A server over the first one at one load, of each of COMPARED that all its runs have."""

    load: Load
    subject: int
    spreads: dict[str, Spread]


def ratios(measured: Sequence[Measured]) -> list[Ratio]:
    """Of the rounds that both have finished."""
    finished = [one for one in measured if not one.run.result.interrupted]
    by_place = {(one.run.load, one.run.plan.subject, one.run.plan.repetition): one for one in finished}
    pairs: dict[tuple[Load, int], list[tuple[Measured, Measured]]] = {}
    for (load, subject, repetition), one in by_place.items():
        if subject and (first := by_place.get((load, 0, repetition))) is not None:
            pairs.setdefault((load, subject), []).append((first, one))
    return [Ratio(load, subject, _spreads(its_pairs)) for (load, subject), its_pairs in pairs.items()]


def _spreads(pairs: Sequence[tuple[Measured, Measured]]) -> dict[str, Spread]:
    spreads = {key: Spread.of(_ratio(key, *pair) for pair in pairs) for key in COMPARED}
    return {key: spread for key, spread in spreads.items() if spread is not None}


def _ratio(key: str, first: Measured, other: Measured) -> float | None:
    below, above = FIGURES[key].value(first), FIGURES[key].value(other)
    return above / below if above is not None and below else None
