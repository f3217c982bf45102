"""All that was measured, and the ratios it comes to."""

from dataclasses import dataclass, field

from loadtest.figures import Measured, Spread
from loadtest.options import slo
from loadtest.peers.contenders import Spec
from loadtest.peers.disturbance import Disturbance
from loadtest.peers.floors import Floors
from loadtest.peers.places import Places
from loadtest.peers.ratios import Ratio, Results
from loadtest.roofline import Roofline
from loadtest.sweep import Run


@dataclass(slots=True)
class Outcome:
    """Filled as the runs end. `peaks`: bytes of memory."""

    floors: Floors
    places: Places
    specs: tuple[Spec, ...] = ()
    measured: list[Measured] = field(default_factory=list)
    peaks: dict[str, int | None] = field(default_factory=dict)
    disturbances: dict[str, Disturbance] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, run: Run, spec: Spec) -> Measured:
        self.measured.append(Measured.of(run, slo(None, None, None), self.floors.of(spec, self.places)))
        return self.measured[-1]

    @property
    def results(self) -> Results:
        return Results([spec.name for spec in self.specs], self.measured)

    @property
    def ratios(self) -> list[Ratio]:
        found = [*self.results.of_pairs(), *self.results.of_caches()]
        for name, one in self.disturbances.items():
            spread = Spread(one.ratio, one.ratio, one.ratio, 1)
            found.append(Ratio(f"{name}, beside a long prompt / calm: ITL p99", spread, more_is_better=False))
        return [*found, *self.results.of_floors(self.rooflines)]

    @property
    def rooflines(self) -> dict[str, Roofline]:
        return {spec.name: self.floors.of(spec, self.places) for spec in self.specs}
