"""The GPU path on a GPU: is it right, and how fast is it? One script that needs the repository, torch, transformers
and Triton alone, takes at most ten minutes, and prints a table last.

    python -m loadtest.gpu_check
    TRITON_INTERPRET=1 python -m loadtest.gpu_check --cpu-interpreter

The second checks a tiny model's correctness without a GPU, in Triton's interpreter, and times nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time

import torch
import transformers
import triton

from engines.torch.gpu.attention import TritonAttention
from engines.torch.gpu.buckets import GraphBuckets
from engines.torch.gpu.kv_cache import PagedMemory
from engines.torch.gpu.opening import by_kernels
from engines.torch.gpu.step import Attention
from loadtest.gpu import correctness, timing
from loadtest.gpu.correctness import Row
from loadtest.gpu.models import QWEN3_06B, QWEN3_8B, TINY, Shape, build, serve

MOST = 96  # sequences at once in the checks: every kind of step between buckets
BUDGET_S = 540.0  # after which nothing new begins


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu-interpreter", action="store_true", help="correctness of a tiny model, without a GPU")
    options = parser.parse_args()
    if not options.cpu_interpreter and not torch.cuda.is_available():
        parser.error("no CUDA device: --cpu-interpreter checks a tiny model without one")
    if options.cpu_interpreter and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--cpu-interpreter needs TRITON_INTERPRET=1 in the environment")
    torch.manual_seed(0)
    rows = interpreted() if options.cpu_interpreter else measured()
    print_table(rows)
    return int(any(row.passed is False for row in rows))


def interpreted() -> list[Row]:
    torch.set_default_device("cpu")
    return [
        correctness.kernels(TINY, [1, 3], torch.float32, by_interpreter),
        correctness.batches(TINY, 2, 2, None, by_interpreter),
        correctness.batches(TINY, 2, 2, 33, by_interpreter),
    ]


def by_interpreter(memory: PagedMemory) -> Attention:
    return TritonAttention(memory, multiprocessors=4)


def measured() -> list[Row]:
    torch.set_default_device("cuda")
    began = time.monotonic()
    rows: list[Row] = []
    sizes = correctness.edges(GraphBuckets.up_to(MOST))
    for dtype in (torch.float32, torch.bfloat16):
        for shape in (QWEN3_8B, QWEN3_06B):
            rows.append(note(correctness.kernels(shape, sizes, dtype, by_kernels)))
    rows += [note(correctness.batches(QWEN3_06B, MOST, 4, window, by_kernels)) for window in (None, 33)]
    forget()
    bytes_per_s = timing.bandwidth()
    rows.append(note(Row("bandwidth of a copy", f"{bytes_per_s / 1e12:.2f} TB/s")))
    for shape in (QWEN3_06B, QWEN3_8B):
        if time.monotonic() - began > BUDGET_S:
            rows.append(note(Row(f"{shape.name}: no time left", "", "", False)))
            continue
        rows += timed(shape, bytes_per_s)
    rows.append(Row("all of this", f"{time.monotonic() - began:.0f} s", "600 s", time.monotonic() - began < 600))
    return rows


def timed(shape: Shape, bytes_per_s: float) -> list[Row]:
    forget()
    served = serve(build(shape, torch.bfloat16, torch.get_default_device()), timing.CONCURRENT, 1600, by_kernels)
    rows = []
    for batch in (1, 32):
        rows += [note(row) for row in timing.decode(shape.name, served, batch, bytes_per_s)]
    return rows + [note(row) for row in timing.comparison(shape.name, served)]


def forget() -> None:
    """What the last check held is free for the next."""
    gc.collect()
    torch.cuda.empty_cache()


def note(row: Row) -> Row:
    print(f"{time.strftime('%H:%M:%S')}  {row.what}: {row.figure}", file=sys.stderr, flush=True)
    return row


def print_table(rows: list[Row]) -> None:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, Triton's interpreter"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, triton {triton.__version__}"
    print(f"\n{time.strftime('%Y-%m-%d')}, {where}, {versions}\n")
    width = max(len(row.what) for row in rows)
    for row in rows:
        verdict = {None: "", True: "ok", False: "FAILED"}[row.passed]
        print(f"{row.what:{width}}  {row.figure:>28}  {row.limit:>6}  {verdict}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
