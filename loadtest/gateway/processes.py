"""The processes that are measured: started, kept on a core of their own, asked for their processor time."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 20.0
_USER, _SYSTEM = 11, 12  # of /proc/PID/stat, counted from behind the name


class Cores(NamedTuple):
    """Those of the gateway, and those of everything else."""

    gateway: set[int]
    others: set[int]

    @classmethod
    def of_machine(cls) -> Cores:
        """The first for the gateway; with one core alone all share it."""
        first, *others = sorted(os.sched_getaffinity(0))
        return cls({first}, set(others) or {first})


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Its output can be read; what it says otherwise goes to `log`, or to ours."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w")) if log else None
        process = subprocess.Popen(  # noqa: S603
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def cpu_s(pid: int) -> float:
    """User and system time of one process so far, all its threads, without its children.

    The sum is exact to a tick, where that of both is a sample (`cputime_adjust` in Linux).
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / TICKS


def place(pid: int, cores: Cores) -> None:
    """A gateway on its core, and what it has started (engines) on the others."""
    _pin(pid, cores.gateway)
    for child in children(pid):
        _pin(child, cores.others)


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _pin(pid: int, cores: set[int]) -> None:
    """Every thread that it has; those that come inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)
