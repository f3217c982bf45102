"""How far a run is, on standard error, so that the report alone is on standard output."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.records import RequestRecord
from loadtest.runner import OnProgress, Stage
from loadtest.sweep import Begin, PlannedRun


@contextmanager
def progress_bars(num_runs: int, *, enabled: bool) -> Iterator[Begin]:
    """Silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        TextColumn("{task.fields[failed]}", style="red"),
        console=console,
        transient=True,
        refresh_per_second=4,  # it shares our core
        disable=not (enabled and console.is_terminal),
    )
    with bar:
        done = iter(range(num_runs))

        def begin(plan: PlannedRun) -> OnProgress:
            for task in bar.task_ids:
                bar.remove_task(task)
            where = f" {next(done) + 1}/{num_runs}" if num_runs > 1 else ""
            return _watch(bar, plan, where)

        yield begin


def _watch(bar: Progress, plan: PlannedRun, where: str) -> OnProgress:
    totals = {Stage.WARMUP: plan.config.num_warmup, Stage.MEASURED: plan.config.num_requests}
    tasks = {s: bar.add_task(f"{s.value}{where}", total=total, failed="") for s, total in totals.items() if total}
    failed = dict.fromkeys(Stage, 0)

    def on_progress(stage: Stage, record: RequestRecord) -> None:
        failed[stage] += record.failure is not None
        words = f"{failed[stage]} failed" if failed[stage] else ""
        bar.update(tasks[stage], advance=1, failed=words)

    return on_progress
