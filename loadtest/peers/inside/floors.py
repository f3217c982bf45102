"""What this machine can do, whatever runs on it: bytes a second read, operations a second of matrix products.

Needs torch. Prints one JSON object. Rates are the best of a few tries, since a floor is what can be had.
"""

import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

READ_BYTES = 2 * 2**30  # more than the last level of any cache
ROWS = (1, 4, 16, 64, 512)
OUTPUTS, INPUTS = 1024, 1024  # its weights stay in the caches of the cores: memory is measured by itself
MIN_S, TRIES = 0.05, 5


def rate(work: Callable[[], object], amount: float) -> float:
    """`amount` of a call, a second."""
    work()
    start = perf_counter()
    work()
    calls = max(1, int(MIN_S / max(1e-7, perf_counter() - start)))
    times = []
    for _ in range(TRIES):
        start = perf_counter()
        for _ in range(calls):
            work()
        times.append((perf_counter() - start) / calls)
    return amount / min(times)


def bytes_per_s() -> float:
    """Read, by a sum over float32 or a product of a matrix and a vector, whichever is faster."""
    matrix = torch.ones(READ_BYTES // 4 // 4096, 4096)
    vector = torch.ones(4096)
    return max(rate(matrix.sum, READ_BYTES), rate(lambda: matrix @ vector, READ_BYTES))


def bfloat16(rows: int) -> float:
    weight = torch.randn(OUTPUTS, INPUTS, dtype=torch.bfloat16)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    source = torch.randn(rows, INPUTS, dtype=torch.bfloat16)
    plain = rate(lambda: torch.nn.functional.linear(source, weight), _flop(rows))
    prepacked = rate(lambda: torch.ops.mkldnn._linear_pointwise(source, packed, None, "none", [], ""), _flop(rows))
    return max(plain, prepacked)


def int8(rows: int) -> float:
    weight = torch.randint(-127, 127, (OUTPUTS, INPUTS), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, INPUTS])
    scales, zeros = torch.ones(OUTPUTS), torch.zeros(OUTPUTS, dtype=torch.int64)
    source = torch.randint(0, 255, (rows, INPUTS), dtype=torch.uint8)

    def work() -> Any:
        return torch.ops.onednn.qlinear_pointwise(
            source, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return rate(work, _flop(rows))


def _flop(rows: int) -> float:
    return 2.0 * rows * OUTPUTS * INPUTS


def table(measure: Callable[[int], float]) -> dict[str, float]:
    """Empty where this torch can't do it."""
    try:
        return {str(rows): measure(rows) for rows in ROWS}
    except (RuntimeError, AttributeError, NotImplementedError):
        return {}


if __name__ == "__main__":
    with torch.inference_mode():
        found = {"bytes_per_s": bytes_per_s(), "bfloat16": table(bfloat16), "int8": table(int8)}
    print(json.dumps(found | {"threads": torch.get_num_threads(), "torch": torch.__version__}))
