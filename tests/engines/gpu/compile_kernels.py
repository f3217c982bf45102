"""Compiles the kernels for an H200 (sm_90), which needs no GPU, and prints their names. The interpreter takes more than
the compiler does. To be run without TRITON_INTERPRET."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engines.torch.gpu import fused_kernels, kernels

HALF, WIDE, LONG, INT = "*bf16", "*fp32", "*i64", "i32"


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> None:
    signature = types | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print(kernel.__name__)


def attend(splits: int, block_q: int, **special: Any) -> None:
    result = WIDE if splits > 1 else HALF
    types = {"query": HALF, "keys": HALF, "values": HALF, "tables": "*i32", "row_slots": LONG, "positions": LONG}
    types |= {"chunk_starts": LONG, "sinks": HALF, "output": result, "split_max": WIDE, "split_sum": WIDE}
    types |= {"num_chunks": INT, "scale": "fp32"}
    types |= dict.fromkeys(("query_head_stride", "query_row_stride", "table_stride"), INT)
    constants = {"HEADS": 8, "GROUP": 4, "KEY_DIM": 128, "VALUE_DIM": 128, "PADDED_KEY": 128, "PADDED_VALUE": 128}
    constants |= {"PAGE": 16, "BLOCK_M": max(16, 4 * block_q), "BLOCK_Q": max(1, block_q), "BLOCK_N": 64}
    constants |= {"WINDOW": 0, "SOFTCAP": 0.0, "HAS_SINKS": False, "IS_DECODE": not block_q, "SPLITS": splits}
    compile_kernel(kernels.attend_kernel, types, constants | {"PRECISION": "tf32"} | special)


def main() -> None:
    attend(splits=16, block_q=0)
    attend(splits=1, block_q=16, WINDOW=100, SOFTCAP=30.0, HAS_SINKS=True)
    stored = {"key": HALF, "value": HALF, "keys": HALF, "values": HALF, "tables": "*i32", "row_slots": LONG}
    stored |= {"positions": LONG}
    strides = ("key_head_stride", "key_row_stride", "value_head_stride", "value_row_stride", "table_stride")
    sizes = {"HEADS": 8, "KEY_DIM": 80, "VALUE_DIM": 80, "PADDED_KEY": 128, "PADDED_VALUE": 128, "PAGE": 16}
    compile_kernel(kernels.store_kernel, stored | dict.fromkeys(strides, INT), sizes)
    merged = {"parts": WIDE, "split_max": WIDE, "split_sum": WIDE, "output": HALF}
    compile_kernel(kernels.merge_kernel, merged, {"VALUE_DIM": 128, "PADDED_VALUE": 128, "SPLITS": 16})
    normed = {"states": HALF, "weight": HALF, "output": HALF, "eps": "fp32", "row_stride": INT, "head_stride": INT}
    compile_kernel(fused_kernels._rms_norm_kernel, normed, {"HEADS": 1, "DIM": 4096, "PADDED": 4096})
    compile_kernel(fused_kernels._silu_product_kernel, {"states": HALF, "output": HALF}, {"DIM": 3072, "BLOCK": 1024})


if __name__ == "__main__":
    main()
