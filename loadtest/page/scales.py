"""Axes: values to pixels, and where the ticks are. Pure arithmetic."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LOG_SPAN = 50  # largest over smallest value from which an axis is logarithmic
LOG_REACH = 1e3  # how far down a logarithmic axis goes at most: what is less lies on it
LOG_LEVELS_SPAN = 8  # the same of the levels of a load, which often double


@dataclass(frozen=True, slots=True)
class Scale:
    """`place` maps [low, high] to [0, 1]."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        map_: Callable[[float], float] = math.log if self.is_log else float
        span = map_(self.high) - map_(self.low)
        return (map_(max(value, self.low) if self.is_log else value) - map_(self.low)) / span if span else 0.5


def value_scale(values: Iterable[float]) -> Scale:
    """From 0, or logarithmic where the values span more than LOG_SPAN and none is 0."""
    known = sorted(values) or [1.0]
    if known[0] > 0 and known[-1] / known[0] > LOG_SPAN:
        return _log_scale(known[0], known[-1])
    return _linear_scale(known[-1])


def level_scale(levels: Sequence[float]) -> Scale:
    """Over the levels of a sweep, with a tick at each."""
    low, high = min(levels), max(levels)
    is_log = low > 0 and high / low >= LOG_LEVELS_SPAN
    return Scale(low, high, tuple(sorted(set(levels))), is_log)


def _linear_scale(high: float, num_ticks: int = 4) -> Scale:
    if high <= 0:
        return Scale(0, 1, (0, 1))
    step = _nice(high / num_ticks)
    count = math.ceil(high / step - 1e-9)
    return Scale(0, count * step, tuple(index * step for index in range(count + 1)))


def _nice(rough: float) -> float:
    """The least of 1, 2, 2.5, 5 and 10 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _log_scale(low: float, high: float) -> Scale:
    low = max(low, high / LOG_REACH)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 5)
    return Scale(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), is_log=True)


def short(value: float) -> str:
    """A tick's label: 1,500 as 1.5k."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:,.4g}"
