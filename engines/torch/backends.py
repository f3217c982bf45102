"""Which attention backend serves a model."""

from __future__ import annotations

import torch

from engines.torch.backend import AttentionBackend
from engines.torch.cpu.attention import KernelBackend
from engines.torch.paged import PagedBackend


def backend_for(device: torch.device, dtype: torch.dtype, block_size: int) -> type[AttentionBackend]:
    if device.type == "cpu" and KernelBackend.serves(dtype, block_size):
        return KernelBackend
    return PagedBackend
