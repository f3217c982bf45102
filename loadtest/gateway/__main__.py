"""What Penstock's gateway costs, measured against its fake engine; the same load through LiteLLM's proxy.

    python -m loadtest.gateway --litellm .peers/litellm/bin/litellm
    python -m loadtest.gateway --against ../another-checkout

All of them run from the first round to the last and are asked in turns. The gateway's process has a core of its own;
the engine, the upstream and this program share the others. Its processor time is the kernel's count of it, user and
system. The floor is a server on asyncio that sends the same bytes and does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from loadtest.gateway import report
from loadtest.gateway.load import Load, Part, measure
from loadtest.gateway.processes import Cores
from loadtest.gateway.subjects import ROOT, Pace, Subject, floor, litellm, penstock
from loadtest.options import standalone
from loadtest.records import BenchError
from loadtest.runner import loop_factory


def run(
    stack: ExitStack, pace: Pace, load: Load, rounds: int, program: Path | None, other: Path | None
) -> report.Parts:
    """Raises BenchError."""
    cores = Cores.of_machine()
    os.sched_setaffinity(0, cores.others)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
    bare = stack.enter_context(floor(pace, cores))
    subjects = [bare, stack.enter_context(penstock(report.PENSTOCK, ROOT, pace, cores, folder))]
    if other is not None:
        subjects.append(stack.enter_context(penstock("other", other.resolve(), pace, cores, folder)))
    if program is not None:
        subjects.append(stack.enter_context(litellm(program.absolute(), bare, cores, folder)))
    parts: dict[str, list[Part]] = {subject.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            parts[subject.name].append(_measured(subject, load))
    return parts


def _measured(subject: Subject, load: Load) -> Part:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(measure(subject, load))


def versions(program: Path | None) -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release(), "cores": str(os.cpu_count())}
    if program is not None:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        found["litellm"] = said.stdout.strip().rpartition(" ")[2]
    return found


def main(
    rounds: int = 3,
    rate: Annotated[float, typer.Option(help="Whole answers a second.")] = 200.0,
    requests: Annotated[int, typer.Option(help="Of each round.")] = 1000,
    answer_tokens: Annotated[int, typer.Option(help="Of a whole answer.")] = 16,
    streams: int = 64,
    stream_tokens: Annotated[int, typer.Option(help="Of each stream.")] = 400,
    delay_ms: Annotated[float, typer.Option(help="Between two tokens of a stream.")] = 10.0,
    litellm: Annotated[Path | None, typer.Option(help="LiteLLM's program; measured if it is there.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another checkout of Penstock.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every round, as JSON.")] = None,
) -> None:
    """What Penstock's gateway costs by itself."""
    load, pace = Load(rate, requests, answer_tokens, streams, stream_tokens), Pace(streams, delay_ms)
    if litellm is not None and not litellm.exists():
        typer.echo(f"{litellm} is not there: measured without LiteLLM.")
        litellm = None
    try:
        with ExitStack() as stack:
            parts = run(stack, pace, load, rounds, litellm, against)
    except BenchError as error:
        typer.echo(f"loadtest.gateway: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(report.table(load, delay_ms, parts))
    if json_file is not None:
        document = report.as_document(load, delay_ms, parts, versions(litellm))
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    standalone(main)
