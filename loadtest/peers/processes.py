"""Processes of the comparison: started, waited for, weighed, ended with all that they started."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from loadtest.records import BenchError, one_line

START_S, END_S = 180.0, 10.0


class Process:
    """A process group of its own. What it writes goes to `log`, or with `talks` by lines to `ask`."""

    def __init__(self, command: Sequence[object], log: Path, env: Mapping[str, str], *, talks: bool = False) -> None:
        self._log = log
        pipe = subprocess.PIPE if talks else None
        with log.open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603
                [str(word) for word in command],
                stdin=pipe,
                stdout=pipe if talks else file,
                stderr=file,
                env=os.environ | env,
                start_new_session=True,
            )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One line for one line. Raises BenchError when it has ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self.ended() from None
        if not (line := self._process.stdout.readline()):
            raise self.ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait_until_healthy(self, url: str, headers: Mapping[str, str]) -> None:
        """Until `url` answers with success. Raises BenchError."""
        deadline = time.monotonic() + START_S
        with httpx.Client(trust_env=False, timeout=5.0, headers=dict(headers)) as http:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise self.ended()
                with suppress(httpx.HTTPError):
                    if http.get(url).is_success:
                        return
                time.sleep(0.1)
        raise BenchError(f"not ready within {START_S:g} s; see {self._log}")

    def ended(self) -> BenchError:
        self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it wrote nothing"]
        return BenchError(f"it ended: {one_line(lines[-1])} (see {self._log})")

    def peak_rss(self) -> int | None:
        """Bytes, the sum of each living process's own peak: what they share counts several times. None: no /proc."""
        peaks = [peak for pid in _members(self._process.pid) if (peak := _peak(pid)) is not None]
        return sum(peaks) or None

    def end(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)


def _members(group: int) -> list[int]:
    """Fields of /proc/PID/stat behind the name, which may hold anything: state, parent, group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(path.parent.name))
    return found


def _peak(pid: int) -> int | None:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
