"""Puts our kernels into a model that torch would compute."""

from __future__ import annotations

from typing import Any

from engines.torch.backend import LayerShape
from engines.torch.cpu.decoder import fuse
from engines.torch.cpu.pack import pack_linears


def use_kernels(model: Any, shapes: list[LayerShape]) -> str:
    """Where they fit. The answer says what they do, for people."""
    packed = pack_linears(model)
    if not packed:
        return "torch's layers"
    return "fused layers" if fuse(model, shapes) else f"{packed} packed layers"
