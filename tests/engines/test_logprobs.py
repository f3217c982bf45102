"""How likely tokens are: the arithmetic, and whole engines against transformers' log_softmax in float32."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engines.logprobs import LikelyTokens, logprobs_of
from engines.sampling import Sampler
from engines.steps import StepPlan
from engines.torch import logprobs as on_device
from engines.types import SamplingParams, TokenLogprobs

NEW_TOKENS = 10
LENGTHS = [1, 2, 17, 33, 70]
PENALTIES = {"presence_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": {7: 3.0}}


# --- the arithmetic


def test_a_row_s_probabilities() -> None:
    row = np.log(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)) + np.float32(55)
    told = LikelyTokens(row, 2).of(1)
    assert told.logprob == pytest.approx(math.log(0.2), abs=1e-5)
    assert [token for token, _ in told.top] == [3, 2]
    assert [value for _, value in told.top] == pytest.approx([math.log(0.4), math.log(0.3)], abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 5, 50, 99])
def test_the_likeliest_come_in_order(count: int) -> None:
    row = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    (told,) = logprobs_of(row[None], [3], count)
    expected = torch.from_numpy(row).log_softmax(0)
    assert [token for token, _ in told.top] == expected.argsort(descending=True)[:count].tolist()
    assert told.logprob == pytest.approx(float(expected[3]), abs=1e-5)


def test_of_equals_the_lower_id_comes_first() -> None:
    assert [token for token, _ in LikelyTokens(np.zeros(4, dtype=np.float32), 4).of(0).top] == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("count", [0, 3])
def test_no_number_is_impossible(value: float, count: int) -> None:
    row = np.array([0.0, value, 1.0, -math.inf], dtype=np.float32)
    for told in logprobs_of(row[None], [1], count) + on_device.logprobs_of(torch.from_numpy(row[None]), [1], count):
        assert not any(math.isnan(number) for number in (told.logprob, *(number for _, number in told.top)))


def test_a_banned_token_is_as_likely_as_the_model_has_it() -> None:
    """What sampling does to a row is not seen in what is told of it."""
    row = np.array([[5.0, 1.0, 0.0]], dtype=np.float32)
    raw = torch.from_numpy(row[0].copy()).log_softmax(0)
    sampler = Sampler(3)
    params = SamplingParams(max_tokens=2, temperature=0.0, logit_bias={0: -100.0}, logprobs=3)
    sampler.add(0, [], params)
    sampled = sampler.sample([0], row)
    assert sampled.token_ids == [1]
    assert sampled.logprobs[0].logprob == pytest.approx(float(raw[1]), abs=1e-5)
    assert [token for token, _ in sampled.logprobs[0].top] == [0, 1, 2]


def test_only_those_who_ask_are_told() -> None:
    sampler = Sampler(4)
    for number, count in enumerate([None, 0, 2]):
        sampler.add(number, [], SamplingParams(max_tokens=2, temperature=0.0, logprobs=count))
    told = sampler.sample([0, 1, 2], np.eye(4, dtype=np.float32)[:3]).logprobs
    assert {row: len(each.top) for row, each in told.items()} == {1: 0, 2: 2}


# --- engines


def prompts(vocab_size: int) -> list[list[int]]:
    source = random.Random(11)
    return [[source.randrange(2, vocab_size) for _ in range(length)] for length in LENGTHS]


@cache
def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.inference_mode()
def expected(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Row i: of what comes behind token i."""
    logits: torch.Tensor = reference(folder)(torch.tensor([tokens])).logits[0]
    return logits.float().log_softmax(dim=-1)


def check(told: TokenLogprobs, row: torch.Tensor, token: int, count: int, tolerance: float) -> None:
    assert told.logprob == pytest.approx(float(row[token]), abs=tolerance)
    best = row.topk(count)
    assert [value for _, value in told.top] == pytest.approx(best.values.tolist(), abs=tolerance)
    for listed, value in told.top:  # near ties may change places
        assert value == pytest.approx(float(row[listed]), abs=tolerance)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled, penalties": {"temperature": 1.2, "seed": 5, "top_p": 0.9, **PENALTIES},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    ("engine_name", "name", "tolerance"),
    [("torch", "llama", 1e-4), ("torch", "gemma2", 1e-4), ("torch", "gpt2", 1e-4), ("onnx", "llama", 1e-3)],
)
def test_equals_log_softmax_in_a_crowd(
    engine_name: str,
    name: str,
    tolerance: float,
    settings: dict[str, Any],
    request: pytest.FixtureRequest,
    model_folder: Callable[[str], Path],
    planner: Any,
) -> None:
    """Prompts in chunks, lost and computed again, among others that ask for less or nothing."""
    if engine_name == "onnx":
        engine = request.getfixturevalue("make_onnx_engine")(request.getfixturevalue("onnx_folder")(name))
    else:
        engine = request.getfixturevalue("make_engine")(model_folder(name))
    crowd = planner(engine, seed=3, preempt=0.15, max_chunk=20)
    asked = {}
    for prompt in prompts(engine.info.vocab_size):
        asked[crowd.add(prompt, NEW_TOKENS, logprobs=4, prompt_logprobs=3, **settings)] = prompt
        crowd.add(prompt, NEW_TOKENS, logprobs=0, **settings)
        crowd.add(prompt, NEW_TOKENS)
    answers = crowd.run()
    engine.submit(StepPlan(finished=crowd.finished)).result(60)
    assert not any(2 + 3 * i in crowd.logprobs for i in range(len(LENGTHS)))
    for number, prompt in asked.items():
        rows = expected(model_folder(name), prompt + answers[number])
        of_prompt = crowd.prompt_logprobs[number]
        assert sorted(of_prompt) == list(range(1, len(prompt)))
        for position, told in of_prompt.items():
            check(told, rows[position - 1], prompt[position], 3, tolerance)
        for index, (token, told) in enumerate(zip(answers[number], crowd.logprobs[number], strict=True)):
            check(told, rows[len(prompt) - 1 + index], token, 4, tolerance)
        assert not crowd.prompt_logprobs.get(number + 1)
        assert [told.top for told in crowd.logprobs[number + 1]] == [[]] * NEW_TOKENS
