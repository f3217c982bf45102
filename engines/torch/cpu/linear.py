"""Linear layers over weights that are packed once for our kernels, in bfloat16 or int8.

An int8 layer computes W8A8: each row of its input is quantized as it comes, with a scale of its own, the products are
added up exactly, and the sum is scaled by the row's and by the output's scale. An output's bits depend on its own row
alone, whatever other rows are computed with it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import nn

from engines.torch.cpu.library import library

GROUP = 32  # outputs that are packed together
_BF16_CHUNK, _INT8_CHUNK = 32, 64  # inputs that are packed together
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Linear(ctypes.Structure):
    """`Linear` of kernels/linear.h."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("is_int8", ctypes.c_int32),
    )


class _LinearCall(ctypes.Structure):
    """`LinearCall` of kernels/linear.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("adds", ctypes.c_int32),
        ("quantized", ctypes.c_void_p),
        ("row_scales", ctypes.c_void_p),
    )


def can_pack(inputs: int, *, int8: bool) -> bool:
    """Whether there are kernels here for a layer of so many inputs."""
    kernels = library()
    return kernels is not None and bool(kernels.penstock_has_linear()) and (int8 or inputs % _BF16_CHUNK == 0)


def _kernels() -> Any:
    kernels = library()
    assert kernels is not None, "ask can_pack first"
    return kernels


def _padded(values: torch.Tensor, count: int) -> torch.Tensor:
    return nn.functional.pad(values, (0, count - len(values)))


class PackedWeight:
    """A matrix [outputs, inputs] in packed form, which is all that is kept of it."""

    def __init__(
        self, weight: torch.Tensor, scales: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> None:
        """`weight` is bfloat16, or int8 with the `scales` [outputs] of its rows."""
        kernels, (self.outputs, self.inputs) = _kernels(), weight.shape
        self.is_int8 = scales is not None
        groups = -(-self.outputs // GROUP)
        chunk = _INT8_CHUNK if self.is_int8 else _BF16_CHUNK
        weight = weight.contiguous()
        self.packed = torch.empty(groups * GROUP * -(-self.inputs // chunk) * chunk, dtype=weight.dtype)
        self.scales = _padded(scales.float(), groups * GROUP) if scales is not None else torch.empty(0)
        self.sums = torch.zeros(groups * GROUP if self.is_int8 else 0, dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        arguments = [weight.data_ptr(), self.outputs, self.inputs, self.packed.data_ptr()]
        if self.is_int8:
            kernels.penstock_pack_int8(*map(ctypes.c_void_p, [*arguments, self.sums.data_ptr()]))
        else:
            kernels.penstock_pack_bf16(*map(ctypes.c_void_p, arguments))
        self.c = _Linear(
            self.packed.data_ptr(),
            self.scales.data_ptr(),
            self.sums.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self.outputs,
            self.inputs,
            self.is_int8,
        )
        self._by_reference = ctypes.byref(self.c)

    @property
    def padded_inputs(self) -> int:
        """Of a quantized row."""
        return -(-self.inputs // _INT8_CHUNK) * _INT8_CHUNK

    @property
    def nbytes(self) -> int:
        kept = (
            (self.packed, self.scales, self.sums)
            if self.bias is None
            else (self.packed, self.scales, self.sums, self.bias)
        )
        return sum(tensor.nbytes for tensor in kept)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs] of the same dtype: bfloat16, or for int8 weights float32 too."""
        rows = x.reshape(-1, self.inputs).contiguous()
        out = torch.empty((len(rows), self.outputs), dtype=x.dtype)
        quantized, scales = self._scratch(len(rows))
        call = _LinearCall(
            rows.data_ptr(),
            out.data_ptr(),
            len(rows),
            rows.stride(0) * rows.itemsize,
            out.stride(0) * out.itemsize,
            _DTYPES[x.dtype],
            0,
            quantized.data_ptr(),
            scales.data_ptr(),
        )
        _kernels().penstock_linear(self._by_reference, ctypes.byref(call))
        return out.view(*x.shape[:-1], self.outputs)

    def _scratch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_int8:
            return torch.empty(0), torch.empty(0)
        return torch.empty(rows * self.padded_inputs, dtype=torch.int8), torch.empty(rows)

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The matrix's rows `ids` [...], as an embedding reads them: [..., inputs]. bfloat16 weights stay bfloat16."""
        flat = ids.flatten().contiguous()
        if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < self.outputs:
            raise IndexError(f"ids outside [0, {self.outputs})")
        out = torch.empty((len(flat), self.inputs), dtype=dtype)
        arguments = (flat.data_ptr(), len(flat), out.data_ptr(), _DTYPES[dtype])
        _kernels().penstock_rows(self._by_reference, *map(ctypes.c_void_p, arguments))
        return out.view(*ids.shape, self.inputs)


class PackedLinear(nn.Module):
    """An nn.Linear over a packed weight."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.weight = weight
        self.in_features, self.out_features = weight.inputs, weight.outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.linear(x)


class PackedEmbedding(nn.Module):
    """An nn.Embedding over a packed weight, which the model's head may share. Its vectors are of `dtype`, times
    `multiplier`."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype, multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight, self._dtype = weight, dtype
        self._multiplier = None if multiplier == 1.0 else torch.tensor(multiplier, dtype=dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = self.weight.rows(ids, self._dtype)
        return vectors if self._multiplier is None else vectors * self._multiplier
