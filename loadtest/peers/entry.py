"""A contender that runs, warmed up."""

from contextlib import ExitStack
from dataclasses import dataclass

from loadtest.loads import ClosedLoop
from loadtest.peers.cases import Case
from loadtest.peers.contenders import Contender, Spec
from loadtest.peers.places import Places
from loadtest.records import BenchError
from loadtest.runner import BenchConfig
from loadtest.workloads import Drawn, RequestSize, WorkloadName

WARMUP = Case("warm-up", Drawn(WorkloadName.FIXED, RequestSize(24, 8)), 4, 4, 99)
WARMUP_TIMEOUT_S = 200.0


@dataclass(frozen=True, slots=True)
class Entry:
    spec: Spec
    contender: Contender

    def config(self, case: Case, timeout_s: float) -> BenchConfig:
        contender = self.contender
        load = ClosedLoop(case.concurrency, case.name)
        return BenchConfig(
            target=contender.target,
            model=contender.model,
            workload=case.workload,
            load=load,
            num_requests=case.requests,
            num_warmup=0,
            seed=0,
            timeout_s=timeout_s,
            variant=case.variant,
            metrics=contender.metrics,
        )


def enter(stack: ExitStack, places: Places, spec: Spec) -> Entry:
    """Runs until `stack` unwinds. Raises BenchError."""
    entry = Entry(spec, spec.start(places, stack))
    result = entry.contender.run(entry.config(WARMUP, WARMUP_TIMEOUT_S), lambda stage, record: None)
    failures = [record.failure for record in result.records if record.failure is not None]
    if failures:
        raise BenchError(f"{failures[0].reason} {failures[0].detail}")
    return entry
