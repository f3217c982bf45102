"""Linear layers and embeddings with int8 weights, in plain torch: what the numbers are, on any device.

W8A8: a weight matrix is int8 with a float32 scale for each of its rows, which are the outputs. Each row of a layer's
input is quantized as it comes, with a scale of its own, so that it does not depend on its neighbours. The products are
added up exactly; the sum is scaled in float32, by the row's scale first, then by the output's; then comes the bias.
Faster kernels may stand in for these modules: they have the same integers and the same order of roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

LEVELS = 127  # -128 stays unused: the scale is symmetric
# Of inputs, added up in one float32 product: all its partial sums are integers below 2 ** 24, and so exact.
_EXACT = 2**24 // LEVELS**2 // 16 * 16
_FLOATS = 2**18  # of a weight that are float32 at once: they fit a core's cache, and leave no holes in the heap


@dataclass(slots=True, frozen=True)
class Int8Rows:
    values: torch.Tensor  # int8 [rows, n]
    scales: torch.Tensor  # float32 [rows]


def quantize_rows(rows: torch.Tensor) -> Int8Rows:
    """[rows, n], each by its greatest magnitude, rounded to nearest even. A row with an infinity or NaN has that for
    its scale."""
    rows = rows.float()
    greatest = rows.abs().amax(dim=1)
    levels = torch.full_like(greatest, LEVELS)  # a tensor, since torch divides by and into numbers less exactly
    inverse = torch.where(greatest == 0, greatest, levels / greatest)
    values = (rows * inverse[:, None]).round_().clamp_(-LEVELS, LEVELS).nan_to_num_()
    return Int8Rows(values.to(torch.int8), greatest / levels)


def quantize_weight(weight: torch.Tensor) -> Int8Rows:
    """[outputs, inputs], as `quantize_rows`, without a float32 copy of all of it."""
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for part in _parts(weight):
        rows = quantize_rows(weight[part])
        values[part], scales[part] = rows.values, rows.scales
    return Int8Rows(values, scales)


def _parts(weight: torch.Tensor) -> list[slice]:
    size = max(1, _FLOATS // weight.shape[1])
    return [slice(first, first + size) for first in range(0, len(weight), size)]


def integer_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int8 [m, k] and int8 [n, k] -> int32 [m, n], exact."""
    return torch.cat([_product(rows, weight[part]) for part in _parts(weight)], dim=1)


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((len(rows), len(weight)), dtype=torch.int32, device=rows.device)
    for first in range(0, rows.shape[1], _EXACT):
        part = slice(first, first + _EXACT)
        total += (rows[:, part].float() @ weight[:, part].float().T).to(torch.int32)
    return total


class Int8Weight(nn.Module):
    """What layers and embeddings share. `weight` is int8 [outputs, inputs] once it is loaded; until then it may have
    the dtype of the checkpoint, which says what is quantized."""

    weight_scale: torch.Tensor

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype), requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(outputs, dtype=torch.float32))

    @property
    def is_loaded(self) -> bool:
        """With the shapes that it was made for."""
        return (
            self.weight.dtype == torch.int8
            and self.weight.shape == self.shape
            and self.weight_scale.shape == self.shape[:1]
        )


class Int8Linear(Int8Weight):
    """`transposed`: the checkpoint's weight is [inputs, outputs], as GPT-2's."""

    def __init__(self, outputs: int, inputs: int, *, bias: bool, dtype: torch.dtype, transposed: bool = False) -> None:
        super().__init__(outputs, inputs, dtype)
        self.out_features, self.in_features = outputs, inputs
        self.transposed = transposed
        kept = dtype if dtype.is_floating_point else torch.get_default_dtype()
        self.bias = nn.Parameter(torch.empty(outputs, dtype=kept), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs] of the same dtype."""
        rows = quantize_rows(x.reshape(-1, self.in_features))
        sums = integer_product(rows.values, self.weight).float()
        outputs = sums * rows.scales[:, None] * self.weight_scale
        if self.bias is not None:
            outputs += self.bias.float()
        return outputs.to(x.dtype).view(*x.shape[:-1], self.out_features)


class Int8Embedding(Int8Weight):
    """`multiplier`: what Gemma and its like scale every vector by."""

    def __init__(self, rows: int, dim: int, *, dtype: torch.dtype, multiplier: float = 1.0) -> None:
        super().__init__(rows, dim, dtype)
        self.num_embeddings, self.embedding_dim = rows, dim
        self.multiplier = multiplier
        self.dtype = torch.float32  # of the vectors

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[...] -> [..., dim]."""
        vectors = (self.weight[ids].float() * self.weight_scale[ids][..., None]).to(self.dtype)
        if self.multiplier != 1.0:
            vectors *= torch.tensor(self.multiplier, dtype=self.dtype, device=vectors.device)
        return vectors
