"""A real tritonserver on free loopback ports, for tests. `make test-triton` installs it, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sysconfig
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from tests.quota.redis_server import free_port
from tests.triton_models import TritonModel

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".triton"
WHY_NOT = "no Triton server in .triton: `make test-triton` installs it (CPython 3.11, x86-64 Linux) to test the engine"
START_TIMEOUT = 60.0  # seconds, on a busy machine
ATTEMPTS = 3  # one that loads many models at once dies now and then of a lock in its shared memory


def _site_packages() -> Path | None:
    return next(ENVIRONMENT.glob("lib/python3.*/site-packages"), None)


def is_installed() -> bool:
    site = _site_packages()
    return site is not None and (site / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file()


MODELS = (
    TritonModel("vllm", "vllm"),
    TritonModel("vllm-slow", "vllm", delay_ms=20),
    TritonModel("vllm-batched", "vllm", max_batch_size=8),
    TritonModel("ensemble", "ensemble", versions=(1, 2), max_batch_size=8),
    TritonModel("ensemble-unbatched", "ensemble", types={"max_tokens": "UINT32", "num_output_tokens": "UINT32"}),
    TritonModel("ensemble-accumulating", "ensemble", max_batch_size=8, options={"accumulate_tokens": "true"}),
    TritonModel("ensemble-uncounted", "ensemble", leave_out=("return_num_input_tokens", "return_num_output_tokens")),
    TritonModel("tokens", "tokens", max_batch_size=8),
    TritonModel("tokens-slow", "tokens", delay_ms=4, max_batch_size=8),
    TritonModel("tokens-wide", "tokens", types={"input_ids": "INT64", "output_ids": "INT64", "seed": "INT32"}),
    TritonModel("llmapi", "llmapi"),
    TritonModel("llmapi-batched", "llmapi", max_batch_size=8),
    TritonModel("whole-tokens", "tokens", delay_ms=2, decoupled=False, max_batch_size=16),
    TritonModel("whole-text", "ensemble", decoupled=False, max_batch_size=16, leave_out=("exclude_input_in_output",)),
    TritonModel("narrow", "tokens", delay_ms=50, decoupled=False, max_batch_size=1, queue_size=1),
    TritonModel("no-max-tokens", "ensemble", leave_out=("max_tokens",)),
    TritonModel("no-text-output", "vllm", leave_out=("text_output",)),
    TritonModel("wrong-type", "ensemble", types={"max_tokens": "FP32"}),
    TritonModel("no-language-model", "vllm", leave_out=("text_input", "sampling_parameters")),
)
"""What `tests.conftest.triton` serves: every convention in its varieties, and what can't be spoken to."""


class Model(Protocol):
    def write(self, repository: Path) -> object: ...


def running_triton(
    folder: Path, models: Sequence[Model], *, explicit_control: bool = True, with_packages: bool = False
) -> Iterator[TritonServer]:
    if not is_installed():
        pytest.skip(WHY_NOT)
    server = TritonServer(folder, models, explicit_control=explicit_control, with_packages=with_packages)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class TritonServer:
    """Serves these models from `folder`; can be killed and started again on its ports. Without `explicit_control` it
    loads what is there at its start, and takes no orders. `with_packages`: its Python has what Penstock needs, torch
    included."""

    def __init__(
        self, folder: Path, models: Sequence[Model], *, explicit_control: bool = True, with_packages: bool = False
    ) -> None:
        self._explicit_control = explicit_control
        self._folder = folder
        self._python = folder / "python" if with_packages else ENVIRONMENT
        self._models = list(models)
        self._http_port, self._grpc_port = free_port(), free_port()
        self._shared_memory = f"penstock-tests-{os.getpid()}-{self._grpc_port}"
        self._log = folder / "triton.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For gRPC."""
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self._http_port}"

    def start(self) -> None:
        self._write_environment()
        self._write_backend()
        for model in self._models:
            model.write(self._folder / "models")
        for _ in range(ATTEMPTS):
            if self._has_started():
                return
            self.kill()
        raise AssertionError(f"tritonserver does not start: {self._log.read_text()[-3000:]}")

    def _has_started(self) -> bool:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), env=self._environment(), stdout=log, stderr=log, process_group=0
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not (is_ready := self._is_ready()) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return is_ready

    def _write_environment(self) -> None:
        """The backend's Python takes no heed of PYTHONPATH: an environment with the packages that run us. Before them
        comes the numpy that this Triton was built for: of a newer one's arrays it makes empty tensors."""
        if self._python != ENVIRONMENT and not self._python.exists():
            venv.create(self._python)
            site = next(self._python.glob("lib/python3.*/site-packages"))
            (site / "ours.pth").write_text(f"{ROOT}\n{_site_packages()}\n{sysconfig.get_path('purelib')}\n")

    def _write_backend(self) -> None:
        """Triton wants the stub of this Python beside the backend's library; the wheel has one for every Python."""
        site = _site_packages()
        assert site is not None
        server, target = site / "pytriton" / "tritonserver", self._folder / "backends" / "python"
        if not target.exists():
            shutil.copytree(server / "backends" / "python", target)
            stubs = server / "python_backend_stubs" / site.parent.name.removeprefix("python")
            shutil.copy(stubs / "triton_python_backend_stub", target)

    def _command(self) -> list[str]:
        site = _site_packages()
        assert site is not None
        options = {
            "model-repository": self._folder / "models",
            "backend-directory": self._folder / "backends",
            "http-address": "127.0.0.1",
            "http-port": self._http_port,
            "grpc-address": "127.0.0.1",
            "grpc-port": self._grpc_port,
            "allow-metrics": "false",
            "model-control-mode": "explicit" if self._explicit_control else "none",
            "exit-on-error": "false",
            "backend-config": f"python,shm-region-prefix-name={self._shared_memory}",
        }
        if self._explicit_control:
            options["load-model"] = "*"
        arguments = [f"--{name}={value}" for name, value in options.items()]
        arguments += ["--disable-auto-complete-config"]  # else a start takes 20 s
        return [str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"), *arguments]

    def _environment(self) -> dict[str, str]:
        site = _site_packages()
        assert site is not None
        python = (ENVIRONMENT / "bin" / "python").resolve()
        libraries = f"{site / 'nvidia_pytriton.libs'}:{python.parent.parent / 'lib'}"
        return os.environ | {
            "PATH": f"{self._python / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": libraries,
            "PYTHONPATH": str(ROOT),  # the models' answers are those of engines.fake
        }

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.http_url}/v2/health/ready", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def states(self, model: str) -> dict[str, str]:
        """Of its versions, in its own words."""
        answer = httpx.post(f"http://{self.http_url}/v2/repository/index", timeout=30).raise_for_status().json()
        return {m["version"]: m["state"] for m in answer if m["name"] == model and "state" in m}

    def control(self, model: str, action: str) -> None:
        """Another one's load or unload."""
        url = f"http://{self.http_url}/v2/repository/models/{model}/{action}"
        httpx.post(url, timeout=30).raise_for_status()

    def stubs(self, model: str) -> list[int]:
        """The processes that a model runs in."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        pids = [pid for task in tasks.iterdir() for pid in _read(task / "children").split()]
        return [int(pid) for pid in pids if f"/{model}/" in _read(Path(f"/proc/{pid}/cmdline"))]

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """With its stubs, and what they left in shared memory."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for left in Path("/dev/shm").glob(f"{self._shared_memory}*"):  # noqa: S108 - where Triton puts it
            left.unlink(missing_ok=True)


def _read(path: Path) -> str:
    """Of what may have ended by now: nothing."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
