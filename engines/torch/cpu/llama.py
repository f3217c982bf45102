"""Decoder layers as Llama has them: which they are, and what they are made of."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from engines.torch.cpu.linear import PackedLinear

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("input_norm", "middle_norm", "q_norm", "k_norm")


class UnlikeLlama(Exception):
    """Its layers are no layers for these kernels. The message says why."""


class LlamaLayer:
    """What one layer is made of."""

    def __init__(self, layer: Any) -> None:
        """Raises UnlikeLlama."""
        _expect(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
        attention, mlp = layer.self_attn, layer.mlp
        _expect(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
        _expect(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
        if "silu" not in type(mlp.act_fn).__name__.lower():
            raise UnlikeLlama(f"its activation is {type(mlp.act_fn).__name__}")
        self.linears = [getattr(attention, f"{name}_proj") for name in "qkvo"]
        self.linears += [getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")]
        if not all(isinstance(linear, PackedLinear) for linear in self.linears):
            raise UnlikeLlama("some of its weights are not packed")
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.epsilons = {_epsilon(norm) for norm in norms if norm is not None}
        self.norms = [None if norm is None else norm.weight.detach().float().contiguous() for norm in norms]

    @property
    def is_int8(self) -> bool:
        return any(linear.weight.is_int8 for linear in self.linears)

    @property
    def hidden(self) -> int:
        return int(self.linears[0].in_features)

    @property
    def inner(self) -> int:
        return int(self.linears[4].out_features)


def _expect(module: Any, children: set[str], optional: Set[str] = frozenset()) -> None:
    names = {name for name, _ in module.named_children()}
    if names - optional != children:
        raise UnlikeLlama(f"{type(module).__name__} differs in {', '.join(sorted((names - optional) ^ children))}")
    if own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise UnlikeLlama(f"{type(module).__name__} has {own[0]}")


def _epsilon(norm: Any) -> float:
    for name in ("variance_epsilon", "eps"):
        if (epsilon := getattr(norm, name, None)) is not None:
            return float(epsilon)
    raise UnlikeLlama(f"{type(norm).__name__} has no epsilon")
