"""Several loads, each several times, in turns: what drifts on the machine touches all of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loadtest.loads import Load
from loadtest.runner import BenchConfig, BenchResult, OnProgress, run_bench


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run. `subject`: which of several servers, by its place."""

    config: BenchConfig
    repetition: int
    subject: int = 0


def plan_runs(
    configs: Sequence[BenchConfig], loads: Sequence[Load], repeat: int, num_warmup: Callable[[Load], int]
) -> list[PlannedRun]:
    """Every server at every load, side by side, `repeat` times over: with two servers A B A B.

    A repetition has a seed of its own, the same on every server. Loads have the same sizes in words of their own.
    """
    return [
        PlannedRun(_config(config, load, repetition, variant, num_warmup(load)), repetition, subject)
        for repetition in range(repeat)
        for variant, load in enumerate(loads)
        for subject, config in enumerate(configs)
    ]


def _config(base: BenchConfig, load: Load, repetition: int, variant: int, num_warmup: int) -> BenchConfig:
    return replace(base, load=load, seed=base.seed + repetition, variant=variant, num_warmup=num_warmup)


Begin = Callable[[PlannedRun], OnProgress]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. The last one may be an interrupted one."""

    plan: PlannedRun
    result: BenchResult

    @property
    def load(self) -> Load:
        return self.plan.config.load


def run_all(planned: Iterable[PlannedRun], begin: Begin) -> Iterator[Run]:
    """One after another, until one is interrupted. Raises BenchError."""
    for plan in planned:
        result = run_bench(plan.config, begin(plan))
        yield Run(plan, result)
        if result.interrupted:
            return
