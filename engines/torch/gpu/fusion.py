"""Projections of one input become one product, and norms and activations one kernel each, where a module's structure is
known. Each is tried on random numbers when the model is loaded, and stays as it was where the answers differ."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

log = logging.getLogger("penstock.engine")

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_TRIAL_ROWS = 5
_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class Fused:
    """How many of each kind."""

    projections: int = 0
    norms: int = 0
    activations: int = 0


class JoinedLinear(nn.Module):
    """Linear layers over one input, as one. Whichever of its parts is asked first computes all of them."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.weight = nn.Parameter(torch.cat([layer.weight.data for layer in layers]), requires_grad=False)
        biases = [layer.bias.data for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
        self._input: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self.weight, self.bias)

    def part(self, states: torch.Tensor, index: int) -> torch.Tensor:
        if states is not self._input or index not in self._parts:
            self._input, self._parts = states, dict(enumerate(self(states).split(self.sizes, dim=-1)))
        part = self._parts.pop(index)
        if not self._parts:
            self._input = None  # nothing is kept beyond the last of them
        return part


class Part(nn.Module):
    """One of the layers, in its old place."""

    def __init__(self, joined: JoinedLinear, index: int) -> None:
        super().__init__()
        self._joined = [joined]  # in a list: the parameters are its owner's
        self._index = index

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._joined[0].part(states, self._index)


@torch.inference_mode()
def fuse(model: nn.Module) -> Fused:
    """In place."""
    fused = Fused()
    for module in list(model.modules()):
        for names in _JOINED:
            layers = [getattr(module, name, None) for name in names]
            if _can_join(layers):
                fused.projections += _join(module, names)
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            fused.norms += _fuse_norm(module)
        if hasattr(module, "joined_gate_up") and isinstance(getattr(module, "act_fn", None), nn.SiLU | _silu_class()):
            fused.activations += _fuse_mlp(module)
    log.info("fused: %s", fused)
    return fused


def _silu_class() -> type[nn.Module]:
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def _can_join(layers: list[Any]) -> bool:
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    return (
        len(plain) == len(layers)
        and len({layer.in_features for layer in plain}) == 1
        and len({layer.bias is None for layer in plain}) == 1
    )


def _join(module: nn.Module, names: tuple[str, ...]) -> bool:
    layers: list[nn.Linear] = [getattr(module, name) for name in names]
    joined = JoinedLinear(layers)
    states = _trial(layers[0].in_features, layers[0].weight)
    for i, layer in enumerate(layers):
        if not _agree(Part(joined, i), layer, states):
            return False
    setattr(module, "joined_qkv" if len(names) == 3 else "joined_gate_up", joined)
    for i, name in enumerate(names):
        setattr(module, name, Part(joined, i))
    return True


def _fuse_norm(module: Any) -> bool:
    from engines.torch.gpu.fused_kernels import rms_norm  # Triton is not needed otherwise

    weight, eps = module.weight, float(module.variance_epsilon)

    def forward(states: torch.Tensor) -> torch.Tensor:
        return rms_norm(states, weight, eps)

    if not _agree(forward, module, _trial(weight.shape[0], weight)):
        return False
    module.forward = forward
    return True


def _fuse_mlp(module: Any) -> bool:
    from engines.torch.gpu.fused_kernels import silu_product

    joined = module.joined_gate_up

    def forward(states: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = module.down_proj(silu_product(joined(states)))
        return answer

    if not _agree(forward, module, _trial(joined.weight.shape[1], joined.weight)):
        return False
    module.forward = forward
    return True


def _trial(dim: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(dim)
    return torch.randn(1, _TRIAL_ROWS, dim, generator=generator, device=like.device).to(like.dtype)


def _agree(ours: Forward, theirs: Any, states: torch.Tensor) -> bool:
    """Whether both give the same, up to rounding. What can't even run does not."""
    try:
        expected = theirs(states)
        answer = ours(states)
        error = (answer.double() - expected.double()).norm() / expected.double().norm()
        return answer.dtype == expected.dtype and bool(error <= _LIMITS[states.dtype])
    except Exception as failure:
        log.warning("not fused: %s", " ".join(str(failure).split())[:200])
        return False
