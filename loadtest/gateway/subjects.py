"""Who is measured: a Penstock before its fake engine, a LiteLLM proxy before the fake upstream, and that by itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit

from loadtest.gateway.processes import Cores, place, running
from loadtest.local import READY
from loadtest.records import BenchError

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
AT_ONCE, PACED = "at-once", "paced"  # the models: one that does not wait, one that does before every token

# Limits that are counted and never reached.
PENSTOCK = """
[server]
port = 0
log_level = "warning"

[[models]]
name = "{at_once}"
engine = "fake"

[[models]]
name = "{paced}"
engine = "fake"
max_num_seqs = {streams}
options = {{ delay_ms = {delay_ms} }}

[quota.plans.default]
account = {{ rpm = 100000000, tpm = 100000000000, concurrent = 100000 }}
"""

LITELLM_MODEL = """
- model_name: {name}
  litellm_params: {{model: openai/{name}, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
"""
# Its master key is checked; nothing is stored, printed or sent anywhere.
LITELLM = """
litellm_settings: {{telemetry: false}}
general_settings: {{master_key: {key}, disable_spend_logs: true}}
model_list: {models}
"""
LITELLM_ENVIRONMENT = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@dataclass(slots=True, frozen=True)
class Subject:
    name: str
    pid: int
    port: int
    key: str


@dataclass(slots=True, frozen=True)
class Pace:
    """Of the streams, which every subject is to keep."""

    streams: int
    delay_ms: float


@contextlib.contextmanager
def floor(pace: Pace, cores: Cores) -> Iterator[Subject]:
    """Without authentication, and without anything else."""
    command = [sys.executable, "-m", "loadtest.gateway.upstream", "--delay-ms", str(pace.delay_ms)]
    with running(command, os.environ, ROOT) as process:
        port = int(_first_line(process, "the fake upstream"))
        place(process.pid, cores)
        yield Subject("floor", process.pid, port, "")


@contextlib.contextmanager
def penstock(name: str, checkout: Path, pace: Pace, cores: Cores, folder: Path) -> Iterator[Subject]:
    """One gateway; `folder` is for its state."""
    key = secrets.token_urlsafe(24)
    config = folder / f"{name}.toml"
    config.write_text(PENSTOCK.format(at_once=AT_ONCE, paced=PACED, streams=pace.streams, delay_ms=pace.delay_ms))
    command = [sys.executable, "-m", "server.cli", "serve", "--config", str(config), "--data-dir", str(folder / name)]
    environment = os.environ | {"PENSTOCK_API_KEY": key, "PYTHONPATH": str(checkout)}
    with running(command, environment, checkout) as process:
        url = next((line for line in process.stdout or () if line.startswith(READY)), None)
        if url is None:
            raise BenchError(f"{name} has not started")
        place(process.pid, cores)
        yield Subject(name, process.pid, urlsplit(url.removeprefix(READY).strip()).port or 0, key)


@contextlib.contextmanager
def litellm(program: Path, upstream: Subject, cores: Cores, folder: Path) -> Iterator[Subject]:
    """One process, as `litellm` starts it."""
    key, port = f"sk-{secrets.token_urlsafe(24)}", _free_port()
    config, log = folder / "litellm.yaml", folder / "litellm.log"
    models = "".join(LITELLM_MODEL.format(name=name, port=upstream.port) for name in (AT_ONCE, PACED))
    config.write_text(LITELLM.format(key=key, models=models))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, os.environ | LITELLM_ENVIRONMENT, folder, log) as process:
        _await_port(process, port, log)
        place(process.pid, cores)
        yield Subject("litellm", process.pid, port, key)


def _first_line(process: Popen[str], name: str) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise BenchError(f"{name} has not started")
    return line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_port(process: Popen[str], port: int, log: Path) -> None:
    ends = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise BenchError(f"litellm has not started:\n{log.read_text()[-2000:]}")
