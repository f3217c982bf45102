"""`make bench-peers`: Penstock beside llama.cpp and transformers, in turns, with what the machine allows beside it.

python -m loadtest.peers.bench --tokenizer FOLDER [--quick] [--json FILE] [--html FILE] [--compare FILE]
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM, signal
from time import monotonic
from typing import Annotated

import typer

from loadtest import options
from loadtest.peers import disturbance, floors
from loadtest.peers.cases import PROMPT, Case, cases
from loadtest.peers.contenders import SPECS
from loadtest.peers.entry import Entry, enter
from loadtest.peers.outcome import Outcome
from loadtest.peers.places import Places, ensure_model
from loadtest.peers.regression import read, worse
from loadtest.peers.same import agreement
from loadtest.peers.writing import deliver
from loadtest.records import BenchError
from loadtest.runner import BenchConfig
from loadtest.sweep import PlannedRun, Run

TOKENIZER_VARIABLE = "PENSTOCK_PEERS_TOKENIZER"
TIMEOUT_S = 300.0
CALM_S = 3.0  # before the long prompt
EXIT_WORSE, EXIT_TERMINATED = 1, 128 + SIGTERM


def main(
    tokenizer: Annotated[Path, typer.Option(envvar=TOKENIZER_VARIABLE, help="Folder with Qwen3's tokenizer.")],
    contender: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(SPECS)}; several by several options. Unset: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round of smaller cases, without the slow.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="No further round begins that would end later.")] = 14.0,
    rounds: Annotated[int, typer.Option(min=1, help="At most.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where environments, weights and logs lie.")] = Path(".peers"),
    json_file: options.JSONFile = None,
    html_file: options.HTMLFile = None,
    compare: Annotated[Path | None, typer.Option(exists=True, help="A report's JSON, to compare ratios with.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How much worse than it a ratio may be, as a share.")] = 0.15,
) -> None:
    """Serve the same random weights with all, ask the same of all in turns, and print what came of it."""
    begun = monotonic()
    try:
        options.check_writable(json_file, html_file)
        before = read(compare) if compare else {}
        names = _names(contender, quick=quick)
        places = Places(folder)
        ensure_model(places, tokenizer)
        outcome = _measure(names, places, begun + 60 * minutes, 1 if quick else rounds, cases(quick=quick))
        deliver(outcome, json_file, html_file)
        lines = worse(before, outcome.ratios, tolerance) if compare else []
    except BenchError as error:
        typer.echo(f"bench-peers: {error}", err=True)
        raise typer.Exit(1) from None
    for line in lines:
        typer.echo(f"worse than {compare}: {line}", err=True)
    raise typer.Exit(EXIT_WORSE if lines else 0)


def _names(chosen: Sequence[str] | None, *, quick: bool) -> list[str]:
    if unknown := [name for name in chosen or () if name not in SPECS]:
        raise BenchError(f"{unknown[0]} is none of {', '.join(SPECS)}")
    return [name for name, spec in SPECS.items() if (name in chosen if chosen else not (quick and spec.slow))]


def _measure(names: Sequence[str], places: Places, deadline: float, rounds: int, asked: Sequence[Case]) -> Outcome:
    """Raises BenchError."""
    outcome = Outcome(floors.measure(places), places)
    with ExitStack() as stack:
        entries = _started(stack, names, outcome)
        _check_model(outcome, {entry.spec.name: entry for entry in entries})
        for number in range(rounds):
            started = monotonic()
            for case in asked:
                _case(outcome, entries, case, number)
            if number == 0:
                _disturb(outcome, entries)
            if monotonic() + (monotonic() - started) > deadline:
                break
        outcome.peaks = {entry.spec.name: entry.contender.process.peak_rss() for entry in entries}
    return outcome


def _check_model(outcome: Outcome, entries: Mapping[str, Entry]) -> None:
    if "llama-bf16" in entries and "static-batch" in entries:
        processes = (entries[name].contender.process for name in ("llama-bf16", "static-batch"))
        share = agreement(*processes)
        outcome.notes.append(f"llama.cpp and transformers agree on the prompts' tokens and {share:.0%} of greedy ones.")


def _started(stack: ExitStack, names: Sequence[str], outcome: Outcome) -> list[Entry]:
    """Who does not start gets a note, and the others are compared all the same. Raises BenchError: nobody starts."""
    entries = []
    for name in names:
        typer.echo(f"starting {name}", err=True)
        try:
            entries.append(enter(stack, outcome.places, SPECS[name]))
        except BenchError as error:
            outcome.notes.append(f"{name} took no part: {error}")
            typer.echo(outcome.notes[-1], err=True)
    if not entries:
        raise BenchError("nobody could be started")
    outcome.specs = tuple(entry.spec for entry in entries)
    return entries


def _case(outcome: Outcome, entries: Sequence[Entry], case: Case, number: int) -> None:
    for subject, entry in enumerate(entries):
        if entry.spec.slow and (number or not case.suits_slow):
            continue
        _run(outcome, entry, subject, case, number)
        if case.name == PROMPT and entry.contender.metrics:
            _run(outcome, entry, subject, case.again(), number)


def _run(outcome: Outcome, entry: Entry, subject: int, case: Case, number: int) -> None:
    config = config_of(entry, case, number)
    result = entry.contender.run(config, lambda stage, record: None)
    if result.interrupted:
        raise BenchError("interrupted")
    for record in result.records:
        if record.failure is not None:
            raise BenchError(f"{entry.spec.name}, {case.key}: {record.failure.reason} {record.failure.detail}")
        if record.output_tokens != record.planned.max_tokens:
            found = f"{record.output_tokens} tokens instead of {record.planned.max_tokens}"
            raise BenchError(f"{entry.spec.name}, {case.key}: an answer of {found}")
    run = outcome.add(Run(PlannedRun(config, number, subject), result), entry.spec)
    summary = run.summary
    typer.echo(f"{number + 1} {case.key}: {entry.spec.name}: {summary.output_tokens_per_s:.1f} tok/s", err=True)


def config_of(entry: Entry, case: Case, number: int) -> BenchConfig:
    config = entry.config(case, TIMEOUT_S)
    return replace(config, seed=number, variant=case.variant)


def _disturb(outcome: Outcome, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.contender.metrics:
            try:
                found = disturbance.measure(entry.contender.target, entry.contender.model, 0, CALM_S)
            except BenchError as error:
                outcome.notes.append(f"{entry.spec.name}, a long prompt beside streams: {error}")
            else:
                outcome.disturbances[entry.spec.name] = found


if __name__ == "__main__":
    signal(SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # so that what was started ends too
    options.standalone(main)
