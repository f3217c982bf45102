"""How transformers models call our attention, and attention by torch.

The function registered under `ATTENTION_NAME` finds what it needs in one keyword argument of the model's forward,
`attention_step`, which transformers models hand down to their attention layers.

With torch, the heads of a GQA group are folded into the query length: on CPU, SDPA then runs several times faster than
with `enable_gqa`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface

from engines.base import EngineError

ATTENTION_NAME = "penstock_paged"


@dataclass(slots=True, frozen=True)
class LayerCall:
    """One layer's call: query [1, Hq, T, Dk], key [1, Hkv, T, Dk], value [1, Hkv, T, Dv], positions applied."""

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    sliding_window: int | None = None  # a query sees this many keys, its own included
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [Hq], one more logit a head (gpt-oss)

    @property
    def group_size(self) -> int:
        return self.query.shape[1] // self.key.shape[1]


class AttentionStep(Protocol):
    """What a forward pass carries down to its attention layers."""

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        """The attention output [1, T, Hq, Dv]. `extra` has the layer's other keyword arguments."""
        ...


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    attention_step: AttentionStep | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    A mask can only be one that the model made itself, since none is registered for this name: `extra` shows it.
    Raises EngineError for a model that does not hand `attention_step` down.
    """
    if attention_step is None:
        raise EngineError("its attention layers are not given the keyword arguments of the model's call")
    scale = scaling if scaling is not None else float(query.shape[-1] ** -0.5)
    call = LayerCall(module, query, key, value, scale, sliding_window, softcap, s_aux)
    return attention_step.attend(call, extra | {"attention_mask": attention_mask}), None


def register() -> None:
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def is_plainly_causal(call: LayerCall, length: int) -> bool:
    within_window = call.sliding_window is None or length <= call.sliding_window
    return within_window and call.softcap is None and call.sinks is None


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: LayerCall) -> torch.Tensor:
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=call.scaling, enable_gqa=call.group_size > 1
    )


def masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """[n, Hq, T, Dv]. The mask [n or 1, 1, G * T or 1, keys] is for queries folded by group."""
    folded = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    if call.softcap is None and call.sinks is None:
        output = functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=_expanded(mask, folded), scale=call.scaling
        )
    else:
        output = _manual(folded, key, value, mask, call)
    return output.reshape(*query.shape[:3], -1)


def _expanded(mask: torch.Tensor, folded: torch.Tensor) -> torch.Tensor:
    """A decode's mask [n, 1, 1, L] serves every folded head; SDPA on CPU wants the query dimension spelled out."""
    return mask.expand(-1, -1, folded.shape[2], -1)


def _manual(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """Attention with capped logits (Gemma 2) or sinks (gpt-oss), which SDPA does not know."""
    scores = torch.matmul(query, key.transpose(2, 3)) * call.scaling
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = (scores + mask).float()
    if call.sinks is not None:
        per_head = call.sinks.float().view(1, key.shape[1], call.group_size, 1)
        repeats = query.shape[2] // call.group_size
        sinks = per_head.expand(len(query), -1, -1, repeats).flatten(2)[..., None]
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    return torch.matmul(weights.to(query.dtype), value)
