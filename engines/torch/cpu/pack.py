"""Puts our kernels into a transformers model: packed weights in place of its linear layers'."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engines.torch.cpu.linear import PackedEmbedding, PackedLinear, PackedWeight, can_pack
from engines.torch.int8 import Int8Embedding, Int8Linear


def pack_linears(model: Any) -> int:
    """Replace the bfloat16 and the int8 layers that we have kernels for, one after another, so that few weights are
    held twice. A head that shares its weights with the embedding goes on to. The answer is how many were replaced.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = (
        isinstance(embedding, nn.Embedding | Int8Embedding) and head is not None and head.weight is embedding.weight
    )
    count = 0
    for name, layer in list(model.named_modules()):
        if (weight := _packed(layer)) is None:
            continue
        if is_tied and layer is head:
            model.set_input_embeddings(_embedding(embedding, weight))
            embedding.weight = None
        model.set_submodule(name, PackedLinear(weight))
        layer.weight = None
        count += 1
    return count


def _packed(layer: nn.Module) -> PackedWeight | None:
    """None for a layer that we have no kernels for."""
    if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16 and can_pack(layer.in_features, int8=False):
        return PackedWeight(layer.weight.detach(), bias=layer.bias)
    if isinstance(layer, Int8Linear) and can_pack(layer.in_features, int8=True):
        return PackedWeight(layer.weight.detach(), layer.weight_scale, bias=layer.bias)
    return None


def _embedding(replaced: Any, weight: PackedWeight) -> PackedEmbedding:
    if isinstance(replaced, Int8Embedding):
        return PackedEmbedding(weight, replaced.dtype, replaced.multiplier)
    return PackedEmbedding(weight, replaced.weight.dtype)
