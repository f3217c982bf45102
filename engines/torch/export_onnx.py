"""Export a transformers causal language model to ONNX, in the layout and with the names that optimum gives them.

model.onnx takes and gives the KV cache: input_ids, attention_mask, position_ids, past_key_values.N.key / .value in,
logits, present.N.key / .value out, with batch, tokens and past all open. optimum itself follows transformers at some
distance, so it can't be asked to.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from engines.base import EngineError
from engines.files import read_json

_TEXT_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
_BATCH, _TOKENS, _PAST = 2, 3, 5  # of the example inputs: any three numbers that differ, none of them 1


class _WithCache(torch.nn.Module):
    """A model as a function of tensors alone. Its cache drops nothing: a sliding window is a matter of the mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        cache = DynamicCache(ddp_cache_data=past_key_values)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, [(layer.keys, layer.values) for layer in cache.layers]


def export(source: Path, target: Path) -> Path:
    """Write model.onnx in float32, the configuration and the tokenizer's files to `target`; returns the graph's path.

    Raises EngineError. Executes no code of the checkpoint and unpickles nothing.
    """
    transformers_logging.disable_progress_bar()
    if read_json(source / "config.json").get("quantization_config"):
        raise EngineError(f"{source}: its weights are quantized: export the model that they were made of")
    try:
        model = AutoModelForCausalLM.from_pretrained(  # nosec B615
            source,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",  # others build masks that differ for a single token, which a trace would fix
            experts_implementation="batched_mm",  # the others are no ONNX operators
        ).eval()
    except Exception as error:
        raise EngineError(f"{source}: can't be loaded: {_one_line(error)}") from error
    target.mkdir(parents=True, exist_ok=True)
    graph = target / "model.onnx"
    try:
        _export_graph(model, graph)
    except Exception as error:
        raise EngineError(f"{source}: {type(model).__name__} can't be exported: {_one_line(error)}") from error
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    for pattern in _TEXT_FILES:
        for file in source.glob(pattern):
            shutil.copy(file, target)
    return graph


@torch.inference_mode()
def _export_graph(model: Any, graph: Path) -> None:
    past = _example_past(model)
    row = torch.arange(_PAST, _PAST + _TOKENS)
    arguments = (
        torch.ones(_BATCH, _TOKENS, dtype=torch.long),
        torch.ones(_BATCH, _PAST + _TOKENS, dtype=torch.long),
        row[None].repeat(_BATCH, 1),
        past,
    )
    tokens = {0: "batch_size", 1: "sequence_length"}
    cached = {0: "batch_size", 2: "past_sequence_length"}
    shapes = (tokens, {0: "batch_size", 1: "total_sequence_length"}, tokens, [(cached, cached) for _ in past])
    numbered = [f"{layer}.{kind}" for layer in range(len(past)) for kind in ("key", "value")]
    with _quiet():
        program = torch.onnx.export(
            _WithCache(model),
            arguments,
            dynamic_shapes=shapes,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in numbered)],
            output_names=["logits", *(f"present.{n}" for n in numbered)],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(graph)


def _example_past(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the model keeps of a token, as caches of zeros."""
    cache = DynamicCache()
    model(input_ids=torch.zeros(_BATCH, _PAST, dtype=torch.long), past_key_values=cache, use_cache=True)
    return [(torch.zeros_like(layer.keys), torch.zeros_like(layer.values)) for layer in cache.layers]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on what it does not know of this machine, and its traces of every symbol."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _one_line(error: Exception) -> str:
    """The last cause: torch's own message is a page on how to report it."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
