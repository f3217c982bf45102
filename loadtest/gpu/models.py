"""Random models of known shapes, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from engines.torch import attention, probe
from engines.torch.backend import LayerShape
from engines.torch.gpu.kv_cache import PagedMemory
from engines.torch.gpu.opening import OpenAttention, open_runner, prepare
from engines.torch.gpu.runner import GpuRunner
from engines.torch.loader import LoadedModel

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 151936
    tied: bool = False
    window: int | None = None

    def config(self, layers: int = 0) -> Any:
        """`layers`: instead of all of them."""
        count = layers or self.layers
        kinds = ["sliding_attention" if self.window and i % 2 == 0 else "full_attention" for i in range(count)]
        return Qwen3Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=count,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=40960,
            tie_word_embeddings=self.tied,
            use_sliding_window=self.window is not None,
            sliding_window=self.window,
            layer_types=kinds,
            eos_token_id=None,
            bos_token_id=None,
        )


QWEN3_8B = Shape("Qwen3-8B", 4096, 12288, 36, 32)
QWEN3_06B = Shape("Qwen3-0.6B", 1024, 3072, 28, 16, tied=True)
TINY = Shape("tiny", 32, 64, 2, 4, kv_heads=2, head_dim=16, vocab=200)


def build(shape: Shape, dtype: torch.dtype, device: torch.device, layers: int = 0, window: int | None = None) -> Any:
    torch.manual_seed(0)
    attention.register()
    config = Shape(**{name: getattr(shape, name) for name in Shape.__slots__} | {"window": window}).config(layers)
    config.initializer_range = 0.1 if shape.hidden < 1024 else 0.02
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.ATTENTION_NAME)
    model.generation_config.eos_token_id = None
    return model.to(device).eval()


@dataclass(frozen=True, slots=True)
class Served:
    """A model with its memory and its runner."""

    model: Any
    memory: PagedMemory
    runner: GpuRunner
    layers: list[LayerShape]

    @property
    def weight_bytes(self) -> int:
        """That a token is multiplied with: an embedding that is no head is only looked up."""
        total = sum(int(weight.nbytes) for weight in self.model.parameters())
        embedding, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        return total if embedding.data_ptr() == head.data_ptr() else total - int(embedding.nbytes)

    @property
    def token_bytes(self) -> int:
        """KV memory of a token."""
        return sum(shape.elements for shape in self.layers) * int(self.model.dtype.itemsize)


def serve(model: Any, max_num_seqs: int, max_len: int, open_attention: OpenAttention) -> Served:
    """Every sequence has blocks for `max_len` tokens."""
    prepare(model)
    layers = probe.layer_shapes(model)
    blocks = max_num_seqs * -(-max_len // BLOCK_SIZE)
    memory = PagedMemory(layers, blocks, BLOCK_SIZE, 2 * max_num_seqs, max_len, model.dtype, model.device)
    loaded = LoadedModel(model, layers, int(model.config.vocab_size), max_len)
    return Served(model, memory, open_runner(loaded, memory, open_attention(memory), max_num_seqs), layers)
