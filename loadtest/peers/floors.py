"""What this machine allows, measured in the same run: memory, matrix products by rows and type, raw asyncio."""

import json
import subprocess
import sys
from dataclasses import dataclass

from loadtest.client import Endpoint, Target, base_url
from loadtest.loads import ClosedLoop
from loadtest.machine import Sizes
from loadtest.measure import summarize
from loadtest.peers.contenders import Spec
from loadtest.peers.places import INSIDE, Places
from loadtest.peers.processes import Process, free_port
from loadtest.records import BenchError
from loadtest.roofline import Roofline
from loadtest.runner import BenchConfig, run_bench
from loadtest.workloads import Drawn, RequestSize, WorkloadName

KV_BYTES = 2  # of a number in the cache: bfloat16 or float16, for all


@dataclass(frozen=True, slots=True)
class Loopback:
    """A bare asyncio server that streams the same bytes to the same client: what no server in Python gets past."""

    tokens_per_s: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class Floors:
    """`flop_per_s`: by type, then by rows."""

    bytes_per_s: float
    flop_per_s: dict[str, dict[int, float]]
    loopback: Loopback

    def of(self, spec: Spec, places: Places) -> Roofline:
        found = Sizes.of(places.model)
        rates = self.flop_per_s.get(spec.kind) or self.flop_per_s["bfloat16"]
        return RowsRoofline(
            found.parameters,
            found.parameters * spec.weight_bytes,
            found.kv_numbers * KV_BYTES,
            self.bytes_per_s,
            max(rates.values()),
            rates,
            found.parameters - found.head,
        )


@dataclass(frozen=True, slots=True)
class RowsRoofline(Roofline):
    """Knows the rate of matrix products by rows: a few rows reach a small part of what many do. `body`: parameters
    without the head, which a prompt needs for its last token only."""

    rates: dict[int, float]
    body: float

    def prefill_s(self, tokens: float) -> float:
        return 2 * self.body * tokens / self.flop_per_s

    def flop_per_s_at(self, batch: float) -> float:
        """Of the least measured number of rows that is no less, since more rows are no slower."""
        return self.rates[min((rows for rows in self.rates if rows >= batch), default=max(self.rates))]


def measure(places: Places) -> Floors:
    """Raises BenchError."""
    script = [sys.executable, str(INSIDE / "floors.py")]  # Penstock's own environment has torch
    done = subprocess.run(script, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise BenchError(f"the machine's floors can't be measured: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout)
    rates = {kind: {int(rows): rate for rows, rate in found[kind].items()} for kind in ("bfloat16", "int8")}
    if not rates["bfloat16"]:
        raise BenchError("this torch multiplies no bfloat16")
    return Floors(found["bytes_per_s"], rates, _loopback(places))


def _loopback(places: Places, streams: int = 16) -> Loopback:
    port = free_port()
    process = Process([sys.executable, "-m", "loadtest.peers.loopback", str(port)], places.log("loopback"), {})
    try:
        process.wait_until_healthy(f"http://127.0.0.1:{port}/v1/models", {})
        target = Target(base_url(f"http://127.0.0.1:{port}"), None, Endpoint.COMPLETIONS)
        workload = Drawn(WorkloadName.FIXED, RequestSize(64, 64))
        config = BenchConfig(target, "raw", workload, ClosedLoop(streams), 20 * streams, streams, 0, 60.0)
        summary = summarize(run_bench(config, lambda stage, record: None).records)
    finally:
        process.end()
    if summary.num_failed or summary.ttft_s is None:
        raise BenchError(f"the raw loopback server failed: {summary.failures}")
    return Loopback(summary.output_tokens_per_s, summary.ttft_s.p50)
