"""int8 weights in a transformers model, quantized while it is loaded or loaded as `penstock quantize` saved them.

transformers asks a quantizer which modules to put in the place of a model's own, before there are weights, and has it
convert each tensor as it is read: so a checkpoint is never whole in memory, neither in its own precision nor twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from engines.base import EngineError
from engines.torch.int8 import Int8Embedding, Int8Linear, Int8Weight, quantize_weight

METHOD = "penstock-int8"
FORMAT = 1  # to be raised when saved weights mean something else than before
_LEAST = 16  # outputs, and inputs, of a layer that is worth it: gates of experts have fewer
Progress = Callable[[int, int], None]  # weights that are quantized, of how many


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):  # type: ignore[misc]  # transformers has no types
    """`quantization_config` of config.json. Raises EngineError for a format that is none of ours."""

    def __init__(self, quant_method: str = METHOD, format: int = FORMAT, progress: Progress | None = None) -> None:
        if (quant_method, format) != (METHOD, FORMAT):
            raise EngineError(f"quantization_config: expected format {FORMAT} of {METHOD}, got {format}")
        self.quant_method = quant_method
        self.progress = progress

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "format": FORMAT}

    def __deepcopy__(self, memo: object) -> Int8Config:
        return self  # transformers copies it with the model's configuration, and a progress bar can't be


def is_saved(config: Any) -> bool:
    """Whether a model's configuration is that of a folder which `penstock quantize` wrote."""
    found = getattr(config, "quantization_config", None)
    return isinstance(found, dict) and found.get("quant_method") == METHOD


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):  # type: ignore[misc]
    """Made by transformers for one load. Raises EngineError for a model whose weights it can't quantize."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        planned = _plan(model, torch.int8 if self.pre_quantized else torch.get_default_dtype())
        for name, module in planned.items():
            model.set_submodule(name, module)
        tied = _tied(model)
        if not self.pre_quantized:  # a checkpoint has one of them, and only that is quantized
            scales = [f"{name}.weight_scale" for pair in tied for name in pair]
            model._keys_to_ignore_on_load_missing.update(f"^{re.escape(name)}$" for name in scales)
        self._num_weights = len(planned) - len(tied)
        self.quantized: set[str] = set()  # names of modules

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        name = param_name.removesuffix(".weight")
        return not self.pre_quantized and name != param_name and isinstance(model.get_submodule(name), Int8Weight)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def note(self, name: str) -> None:
        """This module has been quantized."""
        self.quantized.add(name)
        if progress := self.quantization_config.progress:
            progress(min(len(self.quantized), self._num_weights), self._num_weights)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class _Quantize(ConversionOps):  # type: ignore[misc]
    def __init__(self, quantizer: Int8Quantizer) -> None:
        self._quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *, model: Any, **_: Any) -> dict[str, torch.Tensor]:
        """By full name: one tensor, or several that a checkpoint keeps in one."""
        converted: dict[str, torch.Tensor] = {}
        for key, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            name = key.removesuffix(".weight")
            rows = quantize_weight(tensor.T if getattr(model.get_submodule(name), "transposed", False) else tensor)
            converted |= {key: rows.values, f"{key}_scale": rows.scales}
            self._quantizer.note(name)
        return converted


def _plan(model: Any, dtype: torch.dtype) -> dict[str, Int8Weight]:
    """What takes the place of which modules: the decoder's linear layers, the head, the table of its embeddings."""
    with torch.device("meta"):
        made = {name: _replacement(module, dtype) for name, module in _candidates(model)}
    planned = {name: module for name, module in made.items() if module is not None}
    for target, source in _tied_names(model):
        if not {target, source} <= planned.keys():  # a tied head is what its embedding is
            planned = {name: module for name, module in planned.items() if name not in (target, source)}
    _refuse_the_rest(model, planned)
    return planned


def _candidates(model: Any) -> list[tuple[str, nn.Module]]:
    table = model.get_input_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if module is table or type(module) in (nn.Linear, Conv1D)
    ]


def _replacement(module: nn.Module, dtype: torch.dtype) -> Int8Weight | None:
    """None for what stays as it is."""
    if type(module) is nn.Linear:
        outputs, inputs = module.weight.shape
        if min(outputs, inputs) < _LEAST:
            return None
        return Int8Linear(outputs, inputs, bias=module.bias is not None, dtype=dtype)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return Int8Linear(outputs, inputs, bias=True, dtype=dtype, transposed=True)
    return _embedding(module, dtype)


def _embedding(module: nn.Module, dtype: torch.dtype) -> Int8Embedding | None:
    multiplier = 1.0
    if type(module) is not nn.Embedding:
        if not type(module).__name__.endswith("ScaledWordEmbedding"):
            return None
        scale = getattr(module, "scalar_embed_scale", None)  # beside a buffer, which has no value yet
        multiplier = float(module.embed_scale if scale is None else scale)  # type: ignore[arg-type]
    rows, dim = module.weight.shape  # type: ignore[misc]
    return Int8Embedding(rows, dim, dtype=dtype, multiplier=multiplier)


def _refuse_the_rest(model: Any, planned: dict[str, Int8Weight]) -> None:
    """Weights of three dimensions are those of many experts in one, most of such a model. Raises EngineError."""
    if not any(isinstance(module, Int8Linear) for module in planned.values()):
        raise EngineError(f"int8: {type(model).__name__} has no linear layers that can be quantized")
    for name, module in model.named_modules():
        large = [p for p in module.parameters(recurse=False) if p.ndim > 2]
        if large and not isinstance(module, nn.Conv1d):
            raise EngineError(f"int8: the fused weights of {type(module).__name__} ({name}) are not supported")


def finish(model: Any, dtype: torch.dtype) -> None:
    """After loading: what is tied shares its scales, and what is not int8 gets `dtype`. Raises EngineError."""
    for target, source in _tied(model):
        _share_scales(model, target, source)
    for name, module in model.named_modules():
        if isinstance(module, Int8Weight) and not module.is_loaded:
            raise EngineError(f"{name}: its weight or its scales have not the shape that config.json asks for")
    cast(model, dtype)


def _tied_names(model: Any) -> list[tuple[str, str]]:
    """Of modules whose weights are one: which one is made of which."""
    pairs = getattr(model, "all_tied_weights_keys", {}).items()
    return [(target.removesuffix(".weight"), source.removesuffix(".weight")) for target, source in pairs]


def _tied(model: Any) -> list[tuple[str, str]]:
    return [pair for pair in _tied_names(model) if isinstance(model.get_submodule(pair[0]), Int8Weight)]


def _share_scales(model: Any, target: str, source: str) -> None:
    """transformers has made their weight one, whichever of the two the checkpoint has."""
    quantized = model.hf_quantizer.quantized
    owner = target if target in quantized and source not in quantized else source
    scales = model.get_submodule(owner).weight_scale
    for name in (target, source):
        model.get_submodule(name).weight_scale = scales


def cast(model: Any, dtype: torch.dtype) -> None:
    """All parameters but the int8 ones, without those that a model wants in float32. Scales are buffers, and stay.

    Copies, so that nothing keeps the checkpoint's file mapped but int8 weights that were saved in it.
    """
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            wanted = torch.float32 if any(part in name for part in exact) else dtype
            parameter.data = parameter.data.to(wanted, copy=True)
    for module in model.modules():
        if isinstance(module, Int8Embedding):
            module.dtype = dtype
    model.config.dtype = dtype


def describe(model: Any) -> str:
    """For people: what the weights are; in brackets the matrices that are not int8, where others are."""
    dtype = str(model.dtype).removeprefix("torch.")
    if not any(isinstance(module, Int8Weight) for module in model.modules()):
        return dtype
    kept = {
        re.sub(r"\.\d+\.", ".*.", name)
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and parameter.is_floating_point()
    }
    return f"int8 and {dtype}" + (f" ({', '.join(sorted(kept))})" if kept else "")
