"""Greedy answers equal transformers' own, token for token in float32, however the work is cut and mixed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engines.steps import StepPlan

MODELS = [
    "llama",
    "llama_tied_mha",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "mistral",
    "mixtral",
    "phi",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt_oss",
    "deepseek_v3",
    "gpt_neox",
    "gpt2",
    "opt",
]
NEW_TOKENS = 12
LENGTHS = [1, 2, 5, 16, 17, 31, 48, 70, 33]


def prompts(vocab_size: int) -> list[list[int]]:
    source = random.Random(7)
    return [[source.randrange(2, vocab_size) for _ in range(length)] for length in LENGTHS]


@cache
def expected(folder: Path) -> list[list[int]]:
    """What `generate` answers to each prompt alone. Eager: older versions drop Gemma 2's softcap under SDPA."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    answers = []
    for prompt in prompts(model.config.vocab_size):
        row = torch.tensor([prompt])
        output = model.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("name", MODELS)
def test_equals_generate_in_a_crowd(
    name: str, model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    check(make_engine, planner, model_folder(name))


@pytest.mark.usefixtures("without_kernel")
@pytest.mark.parametrize("name", MODELS)
def test_equals_generate_by_torch_alone(
    name: str, model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    engine = check(make_engine, planner, model_folder(name))
    assert "attention by SDPA" in engine.info.description


def check(make_engine: Any, planner: Any, folder: Path) -> Any:
    engine = make_engine(folder)
    for seed, preempt in [(0, 0.0), (1, 0.15)]:
        crowd = planner(engine, seed=seed, preempt=preempt)
        for prompt in prompts(engine.info.vocab_size):
            crowd.add(prompt, NEW_TOKENS)
        assert list(crowd.run().values()) == expected(folder)
        engine.submit(StepPlan(finished=crowd.finished)).result()  # a plan without groups
    return engine
