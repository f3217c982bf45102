"""A real `penstock serve` in a process of its own, for tests from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import openai

from tests import tap

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "tests-api-key-0123456789"
ADMIN_KEY = "tests-admin-key-0123456789"
START_TIMEOUT = 120.0  # seconds; importing torch on a busy machine takes many
FAKE_MODEL = '[[models]]\nname = "echo"\nengine = "fake"\noptions = { delay_ms = 2 }\n'
UNLIMITED = "[quota.plans.default]\naccount = {}\n"


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether it runs: one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Address:
    """Where clients reach Penstock: a server, or what stands before several. `trust`: who may vouch for it."""

    base_url = ""
    trust: ssl.SSLContext | bool = True

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def websocket_url(self) -> str:
        return self.base_url.replace("http", "ws", 1) + "/chat/completions"

    def sdk(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": self.base_url, "api_key": API_KEY, "max_retries": 0, **options})  # type: ignore[arg-type]

    def async_sdk(self, **options: object) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{"base_url": self.base_url, "api_key": API_KEY, "max_retries": 0, **options})  # type: ignore[arg-type]

    def http(self, key: str | None = API_KEY) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.root_url, headers=headers, verify=self.trust, timeout=60)


class PenstockProcess(Address):
    """`config` is a whole configuration file, but for the port, which is free, and the data folder.

    One that is started again is at the same address. All that a `judged` one answers goes before `tests.judge`.
    `module` is what is run: the command itself, or one of the tests' own around it.
    """

    def __init__(
        self,
        folder: Path,
        config: str = FAKE_MODEL + UNLIMITED,
        *arguments: str,
        judged: bool = False,
        module: str = "server.cli",
    ) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self.tap = folder / "answers.jsonl" if judged else None
        path = folder / "penstock.toml"
        path.write_text(config, encoding="utf-8")
        module = "tests.tap" if judged else module
        self._command = [sys.executable, "-m", module, "serve", "--config", str(path)]
        self._command += ["--data-dir", str(folder / "data"), *arguments]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        environment |= {"PENSTOCK_API_KEY": API_KEY, "PENSTOCK_ADMIN_KEY": ADMIN_KEY}
        if self.tap is not None:
            environment[tap.VARIABLE] = str(self.tap)
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(self.port)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,  # a signal to the group is for the server and its workers alone
            )
        self.base_url = self._await_banner()
        return self

    def _await_banner(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Penstock is ready at "):
                return line.split()[-1]
        raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")

    def stop(self, timeout: float = 60) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        """For its end; the exit status."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """0 before the first start."""
        return httpx.URL(self.base_url).port or 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def worker_pids(self) -> list[int]:
        return self._children(b"batching.worker")

    def gateway_pids(self) -> list[int]:
        """None where the server's own process is the only gateway."""
        return self._children(b"server.gateway_process")

    def _children(self, module: bytes) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if module in Path(f"/proc/{pid}/cmdline").read_bytes()]

    @contextlib.contextmanager
    def alone(self, gateway: int) -> Iterator[None]:
        """Whoever connects now meets this gateway: the others are held."""
        others = [pid for pid in self.gateway_pids() if pid != gateway]
        _signal(others, signal.SIGSTOP)
        while self._is_database_locked():  # by one that is held: nobody could write
            _signal(others, signal.SIGCONT)
            time.sleep(0.01)
            _signal(others, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(others, signal.SIGCONT)

    def _is_database_locked(self) -> bool:
        for path in (self.folder / "data").glob("*.db"):
            try:
                with contextlib.closing(sqlite3.connect(path, timeout=0.1)) as database:
                    database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    def on_each(self, ask: Callable[[], float]) -> list[float]:
        """What each gateway answers."""
        answers = []
        for gateway in self.gateway_pids():
            with self.alone(gateway):
                answers.append(ask())
        return answers

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        with self.http(ADMIN_KEY) as client:
            text = client.get("/metrics").raise_for_status().text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in wanted))

    def wait_for_metric(self, name: str, value: float, timeout: float = 30) -> None:
        """Until the metric has this value; AssertionError when it does not come to it."""
        deadline = time.monotonic() + timeout
        while (seen := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {seen}, expected {value}"
            time.sleep(0.05)


@contextlib.contextmanager
def started_together(*servers: PenstockProcess) -> Iterator[None]:
    """At the same moment."""
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor() as threads:
            starts = [threads.submit(server.start) for server in servers]
        for server in servers:
            stack.callback(server.stop)
        for start in starts:
            start.result()
        yield
