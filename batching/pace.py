"""How many tokens of prompts may join a step beside decodes, so that running streams keep their pace.

Nobody knows beforehand what a step takes: that depends on the machine, the model, the engine, and on who else uses the
processor. So it is learned from the steps themselves: how long decodes take alone, by their number, and by how much
tokens of prompts lengthen a step, by theirs. Pure: durations come in as values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter

from engines.steps import StepPlan

# Of the time that a step's decodes take alone. Gaps between tokens vary by themselves: aiming at 2.2 keeps the p99 of
# disturbed ones within 3 times that of undisturbed ones.
MAX_SLOWDOWN = 2.2
NEGLIGIBLE = 0.001  # seconds by which any step may be longer: no reader sees them
# Of the newest sample in a mean, if it is more and if it is less than expected: a step can be slower by accident, but
# not faster. What decodes take alone is the measure of all else.
WEIGHTS_ALONE, WEIGHTS_ADDED = (0.1, 0.3), (0.2, 0.4)
OUTLIER = 1.5  # a step that took more than so many times what was expected counts as one that took this
MAX_AGE = 32  # steps with prompts, after which what decodes take alone is measured anew
FADING = 0.99  # of what a number of tokens was found to cost, a step: what is not tried again is believed less
GROWTH = 2.0  # beyond the largest number of tokens that is known, in one step
# Where an engine computes decodes alone in another way (as one CUDA graph), a step may be far slower for a single token
# of a prompt. Beyond so many times the bound, holding back saves little: a prompt is through sooner with steps that are
# a bit longer still.
HOPELESS, CONCESSION = 2.0, 1.25

MAX_PREFILLS = 4  # prompts that are worked off at a time, if a step does not hold more of them


@dataclass(slots=True, frozen=True)
class StepLoad:
    """What a step computes: sequences that decode, and tokens of prompts."""

    num_decodes: int
    num_prefill_tokens: int

    @classmethod
    def of(cls, plan: StepPlan) -> StepLoad:
        """Decodes never share a group with chunks."""
        decodes = sum(len(group) for group in plan.groups if group[0].num_tokens == 1)
        chunks = (row.num_tokens for group in plan.groups if group[0].num_tokens > 1 for row in group)
        return cls(decodes, sum(chunks))


@dataclass(slots=True)
class _Point:
    """A weighted mean of (size, seconds), of steps of about one size. `updated`: see `Pace._clock`."""

    size: float
    seconds: float
    updated: int

    def add(self, size: int, seconds: float, weights: tuple[float, float], clock: int) -> None:
        weight = weights[seconds < self.seconds]
        self.size += weight * (size - self.size)
        self.seconds += weight * (seconds - self.seconds)
        self.updated = clock


_by_size = attrgetter("size")


class Pace:
    """A step with prompts takes at most `max_slowdown` times what it would take without, but at least half a block of
    them goes into each, so that none starves. An engine whose steps nobody measures has no such bound.

    Sizes from one power of two to the next have one mean: that follows what grows with a prompt's length, too.
    """

    def __init__(self, block_size: int, max_slowdown: float = MAX_SLOWDOWN) -> None:
        self._block_size = block_size
        self._least = (block_size + 1) // 2  # tokens of prompts in a step
        self._max_slowdown = max_slowdown
        self._alone: dict[int, _Point] = {}  # by the bit length of the number of decodes
        self._added: dict[int, _Point] = {}  # by that of the number of a prompt's tokens: what they lengthened steps by
        self._clock = 0  # steps with tokens of prompts so far

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step took so long, from when the engine could begin with it to its end."""
        if load.num_prefill_tokens:
            self._clock += 1
            self._observe_added(load, seconds)
        elif load.num_decodes:
            point = self._alone.get(load.num_decodes.bit_length())
            if point is not None:
                seconds = min(seconds, OUTLIER * point.seconds)
            self._put(self._alone, load.num_decodes, seconds, WEIGHTS_ALONE)

    def _observe_added(self, load: StepLoad, seconds: float) -> None:
        alone = self._seconds_alone(load.num_decodes)
        point = self._added.get(load.num_prefill_tokens.bit_length())
        if point is not None:
            seconds = min(seconds, OUTLIER * (alone + point.seconds))
        self._put(self._added, load.num_prefill_tokens, max(0.0, seconds - alone), WEIGHTS_ADDED)

    def _put(self, points: dict[int, _Point], size: int, seconds: float, weights: tuple[float, float]) -> None:
        if (point := points.get(size.bit_length())) is None:
            points[size.bit_length()] = _Point(size, seconds, self._clock)
        else:
            point.add(size, seconds, weights, self._clock)

    def _seconds_alone(self, num_decodes: int) -> float:
        """Of the nearest number that is known: of two as near the smaller. 0: none is."""
        bits = num_decodes.bit_length()
        nearest = min(self._alone, key=lambda known: (abs(known - bits), known), default=None)
        return 0.0 if nearest is None else self._alone[nearest].seconds

    def prefill_tokens(self, num_decodes: int, budget: int) -> int:
        """At most how many of `budget`. 0: what the decodes take alone has to be measured first."""
        if not num_decodes or not (self._alone or self._added) or self._max_slowdown == math.inf:
            return budget
        point = self._alone.get(num_decodes.bit_length())
        if point is None or self._clock - point.updated > MAX_AGE:
            return 0
        tokens = int(self._reach(self._allowed(point.seconds)))
        return min(budget, max(self._least, tokens if tokens < self._block_size else tokens - tokens % self._least))

    def _allowed(self, alone: float) -> float:
        """By how much a step may be longer."""
        allowed = max((self._max_slowdown - 1) * alone, NEGLIGIBLE)
        points = self._added.values()
        least = min((point.seconds for point in points), default=0.0)
        tried_few = any(point.size <= 2 * self._block_size for point in points)
        return CONCESSION * least if tried_few and least > HOPELESS * allowed else allowed

    def _reach(self, seconds: float) -> float:
        """How many tokens lengthen a step by so much, by the line through what is known. Where many were cheap, fewer
        are too: a step can only be slower by accident, not faster."""
        low, above = _Point(0.0, 0.0, 0), None
        for point in sorted(self._added.values(), key=_by_size, reverse=True):
            if point.seconds <= seconds:
                low = point
                break
            above = self._faded(point, seconds) or above
        most = max(low.size * GROWTH, low.size + self._block_size) if low.size or above is None else math.inf
        if above is not None:
            slope = (above.size - low.size) / (above.seconds - low.seconds)
            return min(most, low.size + slope * (seconds - low.seconds))
        return min(most, low.size * seconds / low.seconds) if low.seconds else most

    def _faded(self, point: _Point, seconds: float) -> _Point | None:
        """What is believed of it by now; None: that it takes no more than this, which was not tried."""
        believed = point.seconds * FADING ** (self._clock - point.updated)
        return _Point(point.size, believed, point.updated) if believed > seconds else None


def share_out(budget: int, wanted: list[int]) -> list[int]:
    """Of a step's budget for prompts, what each gets; in `wanted` is what each has left, the oldest first.

    Those with the least left come first, since they are over soonest; the oldest has half of the budget, so that it
    gets on however many short ones come.
    """
    kept = min(wanted[0], budget - budget // 2) if wanted else 0
    shares = [0] * len(wanted)
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        if index == 0:
            kept = 0
        shares[index] = min(wanted[index], budget - kept)
        budget -= shares[index]
    return shares
