"""Which attention backend serves a model."""

from __future__ import annotations

import torch

from engines.torch.backend import AttentionBackend
from engines.torch.paged import PagedBackend


def backend_for(device: torch.device, dtype: torch.dtype, block_size: int) -> type[AttentionBackend]:
    return PagedBackend
