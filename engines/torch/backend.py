"""What owns the KV memory and attends over it: chosen once, when a model is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from engines.records import IntArray
from engines.torch.attention import AttentionStep
from engines.torch.packing import PackedStep


@dataclass(slots=True, frozen=True)
class LayerShape:
    """What one attention layer keeps of a token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(slots=True, frozen=True)
class KVSize:
    """Block b of every layer belongs to the same tokens."""

    num_blocks: int
    block_size: int  # tokens
    dtype: torch.dtype
    device: torch.device


class AttentionBackend(ABC):
    """Used from the engine's thread only."""

    name: str  # for the engine's description

    def __init__(self, shapes: list[LayerShape], size: KVSize) -> None:
        self.block_size = size.block_size

    @classmethod
    @abstractmethod
    def token_bytes(cls, shapes: list[LayerShape], dtype: torch.dtype) -> int:
        """KV memory a token, over all layers."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """KV memory as allocated."""

    @abstractmethod
    def begin(self, step: PackedStep) -> AttentionStep:
        """For one forward pass over this step's packed row."""

    @abstractmethod
    def scrub(self, blocks: IntArray) -> None:
        """These blocks may hold NaN: their next owners must not meet it."""
