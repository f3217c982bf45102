"""Fused modules give what the original ones gave, and what is not known stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engines.torch.gpu import fusion
from engines.torch.gpu.fusion import Fused, fuse

pytest.importorskip("triton", reason="the kernels need Triton, which has no build for this machine")
ROW = torch.tensor([[5, 9, 33, 2, 150, 7, 7]])


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", Fused(projections=4, norms=5, activations=2)),
        ("qwen2", Fused(projections=4, norms=5, activations=2)),  # with biases
        ("qwen3", Fused(projections=4, norms=9, activations=2)),  # with norms of heads
        ("gemma2", Fused(projections=4)),  # other norms, another activation
        ("gpt2", Fused()),
    ],
)
@torch.inference_mode()
def test_a_fused_model_answers_alike(name: str, expected: Fused, model_folder: Callable[[str], Path]) -> None:
    model = load(model_folder(name))
    logits = model(ROW).logits
    num_numbers = sum(weight.numel() for weight in model.parameters())
    assert fuse(model) == expected
    torch.testing.assert_close(model(ROW).logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(ROW).logits, logits, rtol=1e-4, atol=1e-4)
    assert sum(weight.numel() for weight in model.parameters()) == num_numbers


@torch.inference_mode()
def test_what_answers_otherwise_is_left_alone(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(model_folder("llama"))
    logits = model(ROW).logits
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5  # what the kernel is told; the module itself goes by another number
            monkeypatch.setattr(module, "forward", _norm(module.weight))
    monkeypatch.setattr(fusion, "_JOINED", ())
    assert fuse(model) == Fused()
    torch.testing.assert_close(model(ROW).logits, logits, rtol=1e-4, atol=1e-4)


def _norm(weight: torch.Tensor) -> Any:
    return lambda states: weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
