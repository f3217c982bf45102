"""Run a model once on two tokens to learn what its attention layers keep, and refuse what we would get wrong.

The declared flags of a class do not tell all of that. Two equal tokens at the same position must give equal keys:
a model that makes its own positions from the order of the row fails here.
"""

from __future__ import annotations

from typing import Any

import torch

from engines.base import EngineError
from engines.torch.attention import LayerCall
from engines.torch.backend import LayerShape

# What transformers hands to every attention function and what does not change its result.
_HARMLESS = {"position_ids", "position_embeddings", "past_key_values", "use_cache", "cache_position"} | {
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "is_causal",  # checked
}


class _LayerProbe:
    """An AttentionStep that attends to nothing and notes how it was called."""

    def __init__(self) -> None:
        self.calls: dict[int, LayerCall] = {}

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        layer = getattr(call.module, "layer_idx", None)
        if layer is None or layer in self.calls:
            raise EngineError("its attention layers are not numbered one by one")
        unknown = [name for name, value in extra.items() if value is not None and name not in _HARMLESS]
        if unknown:
            raise EngineError(f"its attention uses {', '.join(unknown)}")
        if not getattr(call.module, "is_causal", True) or extra.get("is_causal") is False:
            raise EngineError("its attention is not causal")
        self.calls[layer] = call
        _, heads, tokens, _ = call.query.shape
        return call.query.new_zeros(1, tokens, heads, call.value.shape[3])


@torch.inference_mode()
def layer_shapes(model: Any) -> list[LayerShape]:
    """What each attention layer keeps of a token, by layer index. Raises EngineError."""
    probe = _LayerProbe()
    row = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    try:
        model(input_ids=row, position_ids=row + 1, use_cache=False, attention_step=probe)
        _check(probe.calls, model.config.get_text_config(decoder=True))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineError(f"{type(model).__name__} is not supported: {reason}") from error
    return [_shape(probe.calls[layer]) for layer in sorted(probe.calls)]


def _shape(call: LayerCall) -> LayerShape:
    return LayerShape(call.key.shape[1], call.key.shape[3], call.value.shape[3])


def _check(calls: dict[int, LayerCall], config: Any) -> None:
    if sorted(calls) != list(range(config.num_hidden_layers)):
        raise EngineError(f"{len(calls)} of its {config.num_hidden_layers} layers attend through our interface")
    for call in calls.values():
        if call.query.shape[1] % call.key.shape[1]:
            raise EngineError("its query heads are not a multiple of its key heads")
        if not torch.allclose(call.key[:, :, 0].float(), call.key[:, :, 1].float(), rtol=1e-2, atol=1e-3):
            raise EngineError("it does not honour position_ids")
    _check_windows(calls, config)


def _check_windows(calls: dict[int, LayerCall], config: Any) -> None:
    """A window that only a mask would express would be lost, since no mask is built."""
    if getattr(config, "use_bidirectional_attention", False):
        raise EngineError("its attention is not causal")
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        windowed = any(call.sliding_window is not None for call in calls.values())
        if getattr(config, "sliding_window", None) and not windowed:
            raise EngineError("its sliding_window does not reach the attention function")
        return
    for layer, kind in enumerate(layer_types[: len(calls)]):
        if kind not in ("full_attention", "sliding_attention"):
            raise EngineError(f"layer type {kind}")
        if kind == "sliding_attention" and calls[layer].sliding_window is None:
            raise EngineError("its sliding_window does not reach the attention function")
