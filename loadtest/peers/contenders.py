"""Who is compared: servers over HTTP, and libraries at their own best without a server."""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loadtest.client import Endpoint, Target, base_url
from loadtest.loads import ClosedLoop
from loadtest.peers.places import INSIDE, Places, ensure_gguf
from loadtest.peers.processes import Process, free_port
from loadtest.records import PlannedRequest, RequestRecord, TokenUsage
from loadtest.runner import BenchConfig, BenchResult, OnProgress, Stage, run_bench
from loadtest.server_metrics import MetricsSource
from loadtest.workloads import Draw, Stream, take

CONTEXT = 4608  # tokens of one sequence, at most, where a server wants to know
HERE = "http://127.0.0.1"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that runs. `model` None: its first. `metrics`: of a Penstock."""

    process: Process
    target: Target
    model: str | None = None
    metrics: MetricsSource | None = None

    def run(self, config: BenchConfig, on_progress: OnProgress) -> BenchResult:
        """Raises BenchError."""
        return run_bench(config, on_progress)


class Library(Contender):
    """A script of `inside/`, which is told the sizes of the requests and answers with when each token was there."""

    __slots__ = ()

    def run(self, config: BenchConfig, on_progress: OnProgress) -> BenchResult:
        assert isinstance(config.load, ClosedLoop)
        result = BenchResult(config, "random")
        planned = take(config.workload, config.num_requests, Draw(config.seed, Stream.MEASURED, config.variant))
        sizes = [[one.input_tokens, one.max_tokens] for one in planned]
        answer = self.process.ask({"mix": [config.load.concurrency, sizes]})
        for one, (start_s, times_s) in zip(planned, answer["requests"], strict=True):
            result.records.append(record_of(one, start_s, times_s))
            on_progress(Stage.MEASURED, result.records[-1])
        return result


def record_of(planned: PlannedRequest, start_s: float, times_s: list[float]) -> RequestRecord:
    """As if it had been streamed: an event a token. The clock is another process's, so only differences mean much."""
    usage = TokenUsage(planned.input_tokens, len(times_s))
    return RequestRecord(planned, start_s, times_s[-1], times_s, usage)


@dataclass(frozen=True, slots=True)
class Spec:
    """`weight_bytes`: of one weight as it is served. `start` raises BenchError. `slow`: it runs a few cases, once."""

    name: str
    label: str
    kind: str  # of its matrix products, in the machine's floors
    weight_bytes: float
    start: Callable[[Places, ExitStack], Contender]
    slow: bool = False


def _penstock(*arguments: str) -> Callable[[Places, ExitStack], Contender]:
    def start(places: Places, stack: ExitStack) -> Contender:
        key, admin_key, port = secrets.token_urlsafe(24), secrets.token_urlsafe(24), free_port()
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-peers-"))
        command = [sys.executable, "-m", "server.cli", "serve", places.model, "--port", str(port), "--data-dir", data]
        env = {"PENSTOCK_API_KEY": key, "PENSTOCK_ADMIN_KEY": admin_key, "PENSTOCK_LOG_LEVEL": "warning"}
        process = _started(stack, [*command, *arguments], places.log("penstock" + "".join(arguments)), env)
        process.wait_until_healthy(f"{HERE}:{port}/readyz", {})
        target = _target(port, api_key=key, ignore_eos=True)
        return Contender(process, target, metrics=MetricsSource.of(target.base_url, admin_key))

    return start


def _llama_server(kind: str) -> Callable[[Places, ExitStack], Contender]:
    """It serves one request at a time, and would break one off when the next comes, were it not told otherwise."""

    def start(places: Places, stack: ExitStack) -> Contender:
        port, threads = free_port(), str(os.cpu_count() or 1)
        settings = {
            "model": ensure_gguf(places, kind),
            "host": "127.0.0.1",
            "port": port,
            "n_ctx": CONTEXT,
            "n_threads": threads,
            "n_threads_batch": threads,
            "flash_attn": True,
            "logits_all": False,
            "use_mlock": False,
            "interrupt_requests": False,
            "verbose": False,
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [places.python("llama"), "-m", "llama_cpp.server", *words]
        process = _started(stack, command, places.log(f"llama-server-{kind}"))
        process.wait_until_healthy(f"{HERE}:{port}/v1/models", {})
        return Contender(process, _target(port))

    return start


def _llama_library(kind: str) -> Callable[[Places, ExitStack], Contender]:
    def start(places: Places, stack: ExitStack) -> Contender:
        model, threads = ensure_gguf(places, kind), str(os.cpu_count() or 1)
        command = [places.python("llama"), INSIDE / "llama.py", model, threads]
        return _library(stack, command, places.log(f"llama-{kind}"))

    return start


def _static_batch(places: Places, stack: ExitStack) -> Contender:
    command = [places.python("transformers"), INSIDE / "static_batch.py", places.model, "bfloat16"]
    return _library(stack, command, places.log("static-batch"))


def _transformers_serve(places: Places, stack: ExitStack) -> Contender:
    """Its cache is bounded: left to itself it takes what memory there is."""
    port, hub = free_port(), places.root / "hub"
    (hub / "hub").mkdir(parents=True, exist_ok=True)
    flags = ["--continuous-batching", "--device", "cpu", "--dtype", "bfloat16", "--cb-num-blocks", "64"]
    words = ["serve", places.model.resolve(), "--host", "127.0.0.1", "--port", str(port), *flags]
    command = [places.python("transformers"), "-m", "transformers.cli.transformers", *words]
    process = _started(stack, command, places.log("transformers-serve"), {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"})
    process.wait_until_healthy(f"{HERE}:{port}/health", {})
    return Contender(process, _target(port, says_done=False), model=str(places.model.resolve()))


def _started(stack: ExitStack, command: Sequence[object], log: Path, env: dict[str, str] | None = None) -> Process:
    process = Process(command, log, env or {})
    stack.callback(process.end)
    return process


def _library(stack: ExitStack, command: Sequence[object], log: Path) -> Contender:
    process = Process(command, log, {}, talks=True)
    stack.callback(process.end)
    process.ask({})
    return Library(process, Target(base_url("127.0.0.1:9"), endpoint=Endpoint.COMPLETIONS))


def _target(port: int, *, api_key: str | None = None, ignore_eos: bool = False, says_done: bool = True) -> Target:
    """Greedy, which costs all the same."""
    return Target(base_url(f"{HERE}:{port}"), api_key, Endpoint.COMPLETIONS, ignore_eos, says_done, temperature=0.0)


Q8_0_BYTES = 34 / 32  # 32 numbers and a scale
SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("penstock-bf16", "Penstock, bfloat16", "bfloat16", 2, _penstock("--dtype", "bfloat16")),
        Spec("llama-bf16", "llama.cpp's library, BF16", "bfloat16", 2, _llama_library("BF16")),
        Spec("penstock-int8", "Penstock, int8", "int8", 1, _penstock("--dtype", "bfloat16", "--quantize", "int8")),
        Spec("llama-q8", "llama.cpp's library, Q8_0", "int8", Q8_0_BYTES, _llama_library("Q8_0")),
        Spec("static-batch", "transformers' generate, bfloat16", "bfloat16", 2, _static_batch),
        Spec("llama-server-bf16", "llama.cpp's server, BF16", "bfloat16", 2, _llama_server("BF16"), slow=True),
        Spec("llama-server-q8", "llama.cpp's server, Q8_0", "int8", Q8_0_BYTES, _llama_server("Q8_0"), slow=True),
        Spec("transformers-serve", "transformers serve, bfloat16", "bfloat16", 2, _transformers_serve, slow=True),
    )
}
