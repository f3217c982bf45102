"""The facts for a roofline: a model's, from its files, and this machine's, measured.

python -m loadtest.machine MODEL_FOLDER > roofline.toml
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from struct import unpack
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer

from loadtest.records import BenchError
from loadtest.roofline import Roofline

COPY_BYTES, GEMM_SIZE, TRIES = 256 * 2**20, 1536, 5
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")  # looked up, not multiplied, where the head has weights of its own


def measure(folder: Path, weight_bytes: float, kv_bytes: float) -> Roofline:
    """`weight_bytes`, `kv_bytes`: of one number, as the model is served. Raises BenchError."""
    found = Sizes.of(folder)
    kv_bytes_per_token = found.kv_numbers * kv_bytes
    return Roofline(found.parameters, found.parameters * weight_bytes, kv_bytes_per_token, bytes_per_s(), flop_per_s())


@dataclass(frozen=True, slots=True)
class Sizes:
    """`parameters` that a token is multiplied with, `head` of them for logits; `kv_numbers` that it leaves behind."""

    parameters: int
    head: int
    kv_numbers: int

    @classmethod
    def of(cls, folder: Path) -> "Sizes":
        """Raises BenchError."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            head = int(config.get("vocab_size", 0) * config["hidden_size"])
            found = cls(_parameters(folder), head, _kv_numbers(config))
        except (OSError, ValueError, KeyError) as error:
            raise BenchError(f"{folder}: expected config.json and *.safetensors of a decoder: {error!r}") from None
        if not found.parameters:
            raise BenchError(f"{folder}: no *.safetensors in it")
        return found


def _parameters(folder: Path) -> int:
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        shapes |= _shapes(path)
    if any(name.endswith("lm_head.weight") for name in shapes):
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(EMBEDDINGS)}
    return sum(map(math.prod, shapes.values()))


def _shapes(path: Path) -> dict[str, list[int]]:
    """From the file's header: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(unpack("<Q", file.read(8))[0]))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def _kv_numbers(config: dict[str, Any]) -> int:
    """Of a token: 2 · layers · KV heads · head size."""
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head_size)


def _best_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


def bytes_per_s() -> float:
    """Of a copy, what is read and what is written."""
    source = np.ones(COPY_BYTES // 8)
    target = np.zeros_like(source)
    return 2 * source.nbytes / _best_s(lambda: np.copyto(target, source))


def flop_per_s() -> float:
    """Of a product of two square matrices in float32, on all cores."""
    square = np.ones((GEMM_SIZE, GEMM_SIZE), dtype=np.float32)
    return float(2 * GEMM_SIZE**3 / _best_s(lambda: square @ square))


def main(
    folder: Annotated[Path, typer.Argument(help="A model's folder, with config.json and *.safetensors.")],
    weight_bytes: Annotated[float, typer.Option(min=0.1, help="Of a weight as served: 4 float32, 2 bfloat16.")] = 4,
    kv_bytes: Annotated[float, typer.Option(min=0.1, help="Of a number of the KV cache.")] = 4,
) -> None:
    """Write the facts to standard output, for penstock bench --roofline. They are this machine's in float32: another
    machine, or matrices of another type, are other numbers in that file."""
    try:
        facts = measure(folder, weight_bytes, kv_bytes)
    except BenchError as error:
        typer.echo(f"loadtest.machine: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"# {folder.resolve().name} on {os.cpu_count()} cores, measured with NumPy {np.__version__} in float32")
    for field in fields(facts):
        typer.echo(f"{field.name} = {getattr(facts, field.name):.6g}")


if __name__ == "__main__":
    typer.run(main)
