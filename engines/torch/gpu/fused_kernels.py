"""Triton kernels that take the place of several small ones of torch. Imported only where they run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_norm_kernel(
    states,  # [rows, heads, DIM] by its strides
    weight,
    output,  # the same, dense
    eps,
    row_stride,
    head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, PADDED)
    is_dim = dims < DIM
    x = tl.load(states + row * row_stride + head * head_stride + dims, mask=is_dim, other=0.0)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / DIM + eps)
    factors = tl.load(weight + dims, mask=is_dim, other=0.0)
    normed = (wide * scale).to(x.dtype) * factors
    tl.store(output + (row * HEADS + head) * DIM + dims, normed.to(output.dtype.element_ty), mask=is_dim)


def rms_norm(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As LlamaRMSNorm: over the last dimension, in float32. `states` [..., dim] or [..., heads, dim]."""
    dim = states.shape[-1]
    by_head = states if states.dim() > 3 else states.unsqueeze(-2)
    rows = by_head.flatten(0, -3)
    heads = rows.shape[1]
    output = torch.empty(rows.shape, dtype=torch.promote_types(states.dtype, weight.dtype), device=states.device)
    _rms_norm_kernel[(len(rows), heads)](
        rows if rows.stride(2) == 1 else rows.contiguous(),
        weight,
        output,
        eps,
        rows.stride(0),
        rows.stride(1),
        HEADS=heads,
        DIM=dim,
        PADDED=triton.next_power_of_2(dim),
        num_warps=min(8, max(1, dim // 512)),
    )
    return output.view(states.shape)


@triton.jit
def _silu_product_kernel(states, output, DIM: tl.constexpr, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = block * BLOCK + tl.arange(0, BLOCK)
    is_dim = dims < DIM
    gate = tl.load(states + row * 2 * DIM + dims, mask=is_dim, other=0.0)
    up = tl.load(states + row * 2 * DIM + DIM + dims, mask=is_dim, other=0.0)
    wide = gate.to(tl.float32)
    active = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(output + row * DIM + dims, active * up, mask=is_dim)


def silu_product(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2 * dim], which is dense."""
    dim = gate_up.shape[-1] // 2
    output = gate_up.new_empty(*gate_up.shape[:-1], dim)
    block = min(1024, triton.next_power_of_2(dim))
    grid = (gate_up.numel() // (2 * dim), triton.cdiv(dim, block))
    _silu_product_kernel[grid](gate_up, output, DIM=dim, BLOCK=block, num_warps=4)
    return output
