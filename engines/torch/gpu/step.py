"""What a forward pass on the device carries down to its attention layers."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from engines.torch.attention import LayerCall
from engines.torch.gpu.kv_cache import LayerMemory, PagedMemory, StepRows


class Attention(Protocol):
    """`attention.TritonAttention`, or `reference.ReferenceAttention`."""

    def store(self, layer: LayerMemory, key: torch.Tensor, value: torch.Tensor, rows: StepRows) -> None: ...

    def attend(self, layer: LayerMemory, call: LayerCall, rows: StepRows) -> torch.Tensor: ...


class DeviceStep:
    """An `attention.AttentionStep`: keeps the new keys and values, then attends."""

    def __init__(self, attention: Attention, memory: PagedMemory, rows: StepRows) -> None:
        self._attention, self._memory, self._rows = attention, memory, rows

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        layer = self._memory.layers[call.module.layer_idx]
        self._attention.store(layer, call.key, call.value, self._rows)
        return self._attention.attend(layer, call, self._rows)[None]
