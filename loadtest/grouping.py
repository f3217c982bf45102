"""What grouping by length does for a model that a Triton batches: executed batch size and throughput, as a table.

    python -m loadtest.grouping --triton-url HOST:8001 --triton-http HOST:8000 --model NAME --tokenizer DIR

Three Penstocks before one Triton take turns: one sends requests as they come, one groups equal lengths, one lengths
within 10 % of padding. Prompts are token ids, so their lengths are exact. Executed batches are Triton's own count.
"""

import json
import random
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer

from loadtest import options
from loadtest.client import Endpoint
from loadtest.engines import config_of, drive, enter, measured
from loadtest.figures import Measured, points
from loadtest.loads import ClosedLoop
from loadtest.records import BenchError, PlannedRequest, one_line
from loadtest.results import Report, Table, letter
from loadtest.runner import BenchConfig
from loadtest.server_metrics import SCRAPE_TIMEOUT_S, EngineCounters
from loadtest.sweep import PlannedRun, plan_runs
from loadtest.workloads import Draw, Writer, random_of
from loadtest.writing import EXIT_FAILED, deliver

SETTINGS = {
    "sent as they come": "group_by_length = false",
    "equal lengths together": "max_padding_waste = 0",
    "within 10 % of padding": "max_padding_waste = 0.1",
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompts whose lengths are drawn from these, each as likely, of token ids."""

    name: str
    lengths: Sequence[int]
    output_tokens: int

    def plan(self, draw: Draw) -> Iterator[PlannedRequest]:
        rng: random.Random = random_of(self.name, draw)
        writer = Writer(rng, draw.variant, as_token_ids=True)
        while True:
            length = rng.choice(self.lengths)
            yield PlannedRequest(writer.write(length), length, self.output_tokens)

    def describe(self) -> dict[str, object]:
        return {"input_tokens": f"{min(self.lengths)} to {max(self.lengths)}", "output_tokens": self.output_tokens}


class _ModelStats(msgspec.Struct):
    inference_count: int
    execution_count: int


class _Stats(msgspec.Struct):
    model_stats: list[_ModelStats]


@dataclass(frozen=True, slots=True)
class TritonStats:
    """Triton's statistics of a model, over HTTP: a step is an execution, its sequences are the batch."""

    address: str
    triton_model: str

    async def read(self, model: str) -> EngineCounters:
        """`model` is Penstock's name for it. Raises BenchError."""
        url = f"http://{self.address}/v2/models/{self.triton_model}/stats"
        try:
            async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S) as http:
                body = (await http.get(url)).raise_for_status().content
            stats = msgspec.json.decode(body, type=_Stats).model_stats
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError) as error:
            raise BenchError(f"cannot read {url}: {one_line(str(error)) or type(error).__name__}") from None
        return EngineCounters(
            steps=sum(version.execution_count for version in stats),
            sequences=sum(version.inference_count for version in stats),
        )


def compare_grouping(
    model: Annotated[str, typer.Option(help="Triton's name of a model that its dynamic batcher batches.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or Hugging Face id of the model's tokenizer.")],
    triton_url: Annotated[str, typer.Option(help="HOST:PORT of Triton's gRPC.")] = "127.0.0.1:8001",
    triton_http: Annotated[str, typer.Option(help="HOST:PORT of its HTTP, for statistics.")] = "127.0.0.1:8000",
    max_model_len: Annotated[int, typer.Option(min=0, help="0: as the tokenizer's folder says.")] = 0,
    max_length: Annotated[int, typer.Option(min=20, help="Of the longest prompts.")] = 400,
    output_tokens: Annotated[int, typer.Option(min=1, help="Of every answer.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at any time.")] = 64,
    requests: options.Requests = 192,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each, in turns.")] = 3,
    json_file: options.JSONFile = None,
    html_file: options.HTMLFile = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Drive a Triton through three Penstocks that group differently, and print what each makes of it."""
    declared: dict[str, object] = {"name": model, "url": triton_url, "tokenizer": tokenizer}
    declared |= {"max_model_len": max_model_len, "max_queue": 10 * concurrency}
    try:
        options.check_writable(json_file, html_file)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-grouping-")))
            bases = [_start(stack, folder, declared, setting, requests) for setting in SETTINGS.values()]
            bases = [replace(base, metrics=TritonStats(triton_http, model)) for base in bases]
            planned = plan(bases, mixes(max_length, output_tokens), concurrency, rounds)
            runs = drive(planned, shows_progress=not no_progress)
    except BenchError as error:
        typer.echo(f"loadtest.grouping: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    report = _report(model, measured(runs))
    raise typer.Exit(deliver(report, json_file, html_file))


def mixes(longest: int, output_tokens: int) -> list[Lengths]:
    quarters = [longest * part // 4 for part in (1, 2, 3, 4)]
    return [
        Lengths("one length", [longest // 4], output_tokens),
        Lengths("four lengths", quarters, output_tokens),
        Lengths(f"any from 20 to {longest}", range(20, longest + 1), output_tokens),
    ]


def plan(bases: Sequence[BenchConfig], mixed: Sequence[Lengths], concurrency: int, rounds: int) -> list[PlannedRun]:
    """The servers take turns at one mix after the other. No two runs share a prompt."""
    runs = []
    for mix in mixed:
        configs = [replace(base, workload=mix) for base in bases]
        runs += plan_runs(configs, [ClosedLoop(concurrency, mix.name)], rounds, lambda load: 2 * len(bases))
    return runs


def _start(stack: ExitStack, folder: Path, declared: dict[str, object], setting: str, requests: int) -> BenchConfig:
    """A Penstock with this setting, until `stack` unwinds. Raises BenchError."""
    # Three that watch one model must not load it anew under each other.
    lines = ["[[models]]", 'engine = "triton"', f"options = {{ reload = false, {setting} }}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in declared.items()]  # such JSON is TOML too
    lines += ["[quota.plans.default]", "account = {}"]
    path = folder / f"{len(list(folder.iterdir()))}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    config = config_of(enter(stack, shlex.join(["--config", str(path)])), Lengths("", [1], 1), requests)
    return replace(config, target=replace(config.target, endpoint=Endpoint.COMPLETIONS))


def _report(model: str, runs: tuple[Measured, ...]) -> Report:
    title = f"Grouping by length before Triton: {model}"
    return Report(title, tuple(SETTINGS), runs, tables=(_table(runs),))


def _table(runs: Sequence[Measured]) -> Table:
    cells: dict[str, dict[int, str]] = {}
    for point in points(runs):
        batch, speed = point.spread("batch_size"), point.spread("requests_per_s")
        mix = point.load.mix if isinstance(point.load, ClosedLoop) else ""
        if batch is not None and speed is not None:
            cells.setdefault(mix, {})[point.subject] = f"{batch.median:.1f} a batch, {speed.median:.0f}/s"
    columns = ("prompts", *(f"{letter(i)}: {name}" for i, name in enumerate(SETTINGS)))
    rows = tuple((mix, *(row.get(i, "–") for i in range(len(SETTINGS)))) for mix, row in cells.items())
    note = "Requests in an executed batch, by Triton's own count, and answers a second: medians over the rounds."
    return Table("Executed batches and throughput", columns, rows, note)


if __name__ == "__main__":
    options.standalone(compare_grouping)
