"""Greedy answers equal transformers' own, and so the torch engine's, token for token in float32, however the work is
cut and mixed: of our exports, and of optimum's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.onnx.batches import BatchRules
from engines.onnx.probe import Abilities
from engines.steps import StepPlan
from tests.engines.test_torch_greedy import NEW_TOKENS, expected, prompts

# Grouped queries; normalised queries and keys; learned positions and no groups; windows in every other layer; experts.
MODELS = ["llama", "qwen3", "gpt2", "gemma3", "mixtral"]


def crowds(engine: Any, planner: Any, prompts: list[list[int]], count: int = NEW_TOKENS) -> list[list[list[int]]]:
    """Answers without and with preemption; chunks and groups are random in both."""
    answers = []
    for seed, preempt in [(0, 0.0), (1, 0.15)]:
        crowd = planner(engine, seed=seed, preempt=preempt)
        for prompt in prompts:
            crowd.add(prompt, count)
        answers.append(list(crowd.run().values()))
        engine.submit(StepPlan(finished=crowd.finished)).result()
    return answers


@pytest.mark.parametrize("name", MODELS)
def test_our_exports(
    name: str,
    model_folder: Callable[[str], Path],
    onnx_folder: Callable[[str], Path],
    make_onnx_engine: Any,
    planner: Any,
) -> None:
    engine = make_onnx_engine(onnx_folder(name))
    assert engine._runner.rules.abilities == Abilities(pads=True, continues_in_chunks=True)
    assert crowds(engine, planner, prompts(engine.info.vocab_size)) == [expected(model_folder(name))] * 2


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_exports_by_optimum(name: str, optimum: Path, make_onnx_engine: Any, planner: Any) -> None:
    golden = json.loads((optimum / "golden.json").read_text())
    engine = make_onnx_engine(optimum / name)
    assert crowds(engine, planner, golden["prompts"]) == [golden[name]] * 2


@pytest.mark.parametrize(
    ("pads", "chunks", "free_padding"),
    [(False, False, 0), (False, True, 0), (True, False, 0), (True, True, 0), (True, True, 10), (True, True, 10_000)],
)
def test_graphs_that_can_do_less_answer_the_same(
    pads: bool, chunks: bool, free_padding: int, optimum: Path, make_onnx_engine: Any, planner: Any
) -> None:
    golden = json.loads((optimum / "golden.json").read_text())
    engine = make_onnx_engine(optimum / "llama")
    engine._runner.rules = BatchRules(Abilities(pads, chunks), False, free_padding)
    assert crowds(engine, planner, golden["prompts"]) == [golden["llama"]] * 2
