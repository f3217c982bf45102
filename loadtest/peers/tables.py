"""The comparison as short tables."""

from collections.abc import Iterable

from loadtest.figures import FIGURES, Spread
from loadtest.loads import ClosedLoop
from loadtest.peers.cases import CACHED, CHAT, FIXED, PROMPT
from loadtest.peers.outcome import Outcome
from loadtest.peers.padding import mixed_waste
from loadtest.peers.ratios import FIGURE_OF, PAIRS, WORDS, Ratio
from loadtest.results import Table

# What Penstock is meant to reach, by pair.
WANTED = {
    ("penstock-int8", "llama-q8"): "1: 0.9, chat at 16: 2, TTFT: at most 0.8",
    ("penstock-bf16", "llama-bf16"): "1: 0.9, chat at 16: 1.5, TTFT: at most 0.8",
    ("penstock-bf16", "static-batch"): "chat at 16: 3",
    ("penstock-bf16", "transformers-serve"): "16: 10",
}


def tables(outcome: Outcome) -> list[Table]:
    """The last is the one to read."""
    context = [_floors(outcome), *_padding(outcome), *_disturbances(outcome), *_notes(outcome)]
    return [*context, _speeds(outcome), _ratios(outcome)]


def _notes(outcome: Outcome) -> Iterable[Table]:
    if outcome.notes:
        yield Table("Notes", ("",), tuple((note,) for note in outcome.notes))


def _loads(outcome: Outcome) -> list[ClosedLoop]:
    return [load for load in outcome.results.loads if load.mix in FIGURE_OF]


def _column(load: ClosedLoop) -> str:
    if load.mix == PROMPT:
        return "TTFT"
    return f"{'decode' if load.mix == FIXED else load.mix} {load.concurrency}"


def _speeds(outcome: Outcome) -> Table:
    results, loads = outcome.results, _loads(outcome)
    cached = [load for load in results.loads if load.mix == CACHED]
    columns = ("", *map(_column, loads), *("cached" for _ in cached), "peak GiB")
    rows = []
    for spec in outcome.specs:
        cells = [_speed(outcome, spec.name, load) for load in loads]
        again = [_milliseconds(results.spread(spec.name, load, "ttft_p50_s")) for load in cached]
        rows.append((spec.name, *cells, *again, _gib(outcome.peaks.get(spec.name))))
    note = (
        "Tokens a second at so many streams, and TTFT of a 512-token prompt, cold and cached, in ms; behind them the "
        "share of what the machine allows. decode: while all streams run; chat: their prompts included. llama.cpp's "
        "server answers one request after another; llama-bf16 and llama-q8 are its library at its best, without "
        "sampling or HTTP. What is slow has run once."
    )
    return Table("Speeds", columns, tuple(rows), note)


def _speed(outcome: Outcome, name: str, load: ClosedLoop) -> str:
    results = outcome.results
    spread = results.spread(name, load, FIGURE_OF[load.mix])
    share = results.share(name, load, outcome.rooflines[name])
    if spread is None:
        return "–"
    speed = _milliseconds(spread) if load.mix == PROMPT else FIGURES[FIGURE_OF[load.mix]].show(spread.median)
    return speed + (f" ({share.median:.0%})" if share else "")


def _milliseconds(spread: Spread | None) -> str:
    return "–" if spread is None else f"{spread.median * 1000:,.0f}"


def _gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.1f}"


def _ratios(outcome: Outcome) -> Table:
    found = {ratio.name: ratio for ratio in outcome.ratios}
    loads = _loads(outcome)
    rows = []
    for over, under in PAIRS:
        its = [found.get(key) for key in (_key(over, under, load) for load in loads)]
        if any(its):
            rows.append((f"{over} / {under}", *map(_cell, its), WANTED.get((over, under), "")))
    note = "Medians of the rounds, with the least and the largest. Above 1 is more tokens, or a longer TTFT."
    return Table("Penstock over its peers", ("", *map(_column, loads), "wanted"), tuple(rows), note)


def _key(over: str, under: str, load: ClosedLoop) -> str:
    return f"{over} / {under}, {load}: {WORDS[FIGURE_OF[load.mix]]}"


def _cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    spread = ratio.spread
    return f"{spread.median:.2f}" + (f" ({spread.low:.2f}–{spread.high:.2f})" if spread.count > 1 else "")


def _floors(outcome: Outcome) -> Table:
    floors = outcome.floors
    rows = [("memory read", f"{floors.bytes_per_s / 1e9:.1f} GB/s")]
    for kind, rates in floors.flop_per_s.items():
        if rates:
            words = ", ".join(f"{count}: {rate / 1e9:,.0f}" for count, rate in rates.items())
            rows.append((f"matrix products in {kind}, GFLOP/s by rows", words))
    loopback = floors.loopback
    words = f"{loopback.tokens_per_s:,.0f} tok/s, TTFT {loopback.ttft_p50_s * 1000:.1f} ms"
    rows.append(("raw asyncio over loopback, 16 streams", words))
    return Table("What this machine allows", ("", "measured"), tuple(rows))


def _padding(outcome: Outcome) -> Iterable[Table]:
    """Of Penstock, which says what it padded."""
    rows = []
    for one in outcome.measured:
        waste = FIGURES["padding_waste"].value(one)
        load = one.run.load
        if waste is not None and isinstance(load, ClosedLoop) and load.mix == CHAT and one.run.plan.repetition == 0:
            name = outcome.specs[one.run.plan.subject].name
            rows.append((name, str(load), f"{waste:.1%}", f"{mixed_waste(one.run.result.records):.1%}"))
    if rows:
        note = "Query-key pairs that padding adds, over those asked for; wanted: at most 10 %."
        yield Table("Padding waste", ("", "load", "by length", "one mixed batch"), tuple(rows), note)


def _disturbances(outcome: Outcome) -> Iterable[Table]:
    rows = []
    for name, one in outcome.disturbances.items():
        times = (one.calm_s, one.disturbed_s, one.long_ttft_s)
        rows.append((name, *(f"{value * 1000:,.0f}" for value in times), f"{one.ratio:.1f}"))
    if rows:
        columns = ("", "calm", "beside it", "its TTFT", "ratio")
        note = "p99 of the gaps between tokens of 4 streams, ms, when 4,000 tokens of prompt come; wanted: at most 3."
        yield Table("A long prompt beside streams", columns, tuple(rows), note)
