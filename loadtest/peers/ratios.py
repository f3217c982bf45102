"""What the comparison comes to: ratios, each of runs that followed each other, with their spread."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.figures import FIGURES, Measured, Spread
from loadtest.loads import ClosedLoop
from loadtest.peers.cases import CACHED, CHAT, FIXED, PROMPT, PROMPT_TOKENS
from loadtest.roofline import Roofline

# Penstock over its peer, at equal bits where both have them.
PAIRS = (
    ("penstock-int8", "llama-q8"),
    ("penstock-bf16", "llama-bf16"),
    ("penstock-bf16", "static-batch"),
    ("penstock-int8", "llama-server-q8"),
    ("penstock-bf16", "llama-server-bf16"),
    ("penstock-bf16", "transformers-serve"),
    ("penstock-int8", "penstock-bf16"),
)
FIGURE_OF = {FIXED: "decode_tokens_per_s", CHAT: "output_tokens_per_s", PROMPT: "ttft_p50_s"}
WORDS = {"decode_tokens_per_s": "decode tok/s", "output_tokens_per_s": "output tok/s", "ttft_p50_s": "TTFT p50"}


@dataclass(frozen=True, slots=True)
class Ratio:
    name: str
    spread: Spread
    more_is_better: bool


class Results:
    """Runs by subject, case and round. `names`: of the subjects, by their place."""

    def __init__(self, names: Sequence[str], measured: Sequence[Measured]) -> None:
        self.names = tuple(names)
        self._runs = {(names[m.run.plan.subject], str(m.run.load), m.run.plan.repetition): m for m in measured}
        self.loads = [load for load in dict.fromkeys(m.run.load for m in measured) if isinstance(load, ClosedLoop)]

    def values(self, name: str, load: ClosedLoop, key: str) -> dict[int, float]:
        """By round."""
        found = {
            repetition: FIGURES[key].value(run)
            for (its_name, its_load, repetition), run in self._runs.items()
            if (its_name, its_load) == (name, str(load))
        }
        return {repetition: value for repetition, value in found.items() if value is not None}

    def spread(self, name: str, load: ClosedLoop, key: str) -> Spread | None:
        return Spread.of(self.values(name, load, key).values())

    def of_pairs(self) -> Iterable[Ratio]:
        for over, under in PAIRS:
            for load in self.loads:
                mix = load.mix
                if (key := FIGURE_OF.get(mix)) and (spread := self._ratio((over, load), (under, load), key)):
                    name = f"{over} / {under}, {load}: {WORDS[key]}"
                    yield Ratio(name, spread, more_is_better=mix != PROMPT)

    def of_caches(self) -> Iterable[Ratio]:
        by_mix = {load.mix: load for load in self.loads}
        if CACHED not in by_mix or PROMPT not in by_mix:
            return
        for name in self.names:
            spread = self._ratio((name, by_mix[CACHED]), (name, by_mix[PROMPT]), "ttft_p50_s")
            if spread:
                yield Ratio(f"{name}, cached / cold prompt: TTFT p50", spread, more_is_better=False)

    def of_floors(self, rooflines: Mapping[str, Roofline]) -> Iterable[Ratio]:
        """Achieved over what the machine allows."""
        for name, roofline in rooflines.items():
            for load in self.loads:
                if load.mix in FIGURE_OF and (spread := self.share(name, load, roofline)):
                    words = WORDS[FIGURE_OF[load.mix]].removesuffix(" p50")
                    yield Ratio(f"{name} / floor, {load}: {words}", spread, more_is_better=True)

    def share(self, name: str, load: ClosedLoop, roofline: Roofline) -> Spread | None:
        if load.mix == CHAT:
            return self.spread(name, load, "roofline_share")
        values = self.values(name, load, FIGURE_OF[load.mix]).values()
        if load.mix == PROMPT:
            return Spread.of(roofline.prefill_s(PROMPT_TOKENS) / value for value in values)
        size = next(run.run.plan.config.workload for run in self._runs.values() if run.run.load == load).describe()
        context = float(str(size["input_tokens"])) + float(str(size["output_tokens"])) / 2
        best = load.concurrency / roofline.step_s(load.concurrency, context)
        return Spread.of(value / best for value in values)

    def _ratio(self, over: tuple[str, ClosedLoop], under: tuple[str, ClosedLoop], key: str) -> Spread | None:
        above, below = self.values(*over, key), self.values(*under, key)
        return Spread.of(above[r] / below[r] for r in above if below.get(r))
