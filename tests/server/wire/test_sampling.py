"""server/wire/sampling.py: the client's values, the model's, OpenAI's, in that order; and the context."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.types import SamplingParams
from server.errors import InvalidRequest, UnsupportedParameter
from server.wire.chat import ChatCompletionRequest
from server.wire.completions import CompletionRequest
from server.wire.limits import ModelLimits, SamplingDefaults
from server.wire.sampling import resolve

LIMITS = ModelLimits(context=100, vocab_size=50, max_tokens_default=20, eos_token_ids=frozenset({2}))


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    return ChatCompletionRequest.model_validate_json(json.dumps(body))


def resolved(prompt_tokens: int = 10, limits: ModelLimits = LIMITS, **fields: Any) -> SamplingParams:
    return resolve(chat(**fields), prompt_tokens, limits)


def refusal(prompt_tokens: int = 10, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolved(prompt_tokens, **fields)
    return caught.value


def test_silence_is_openai_s_defaults() -> None:
    assert resolved() == SamplingParams(max_tokens=20, stop_token_ids=frozenset({2}))


def test_the_client_s_values() -> None:
    params = resolved(
        max_tokens=9, min_tokens=3, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.5, logit_bias={"7": -100}, seed=3, stop_token_ids=[4],
    )  # fmt: skip
    assert params == SamplingParams(
        max_tokens=9, min_tokens=3, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1.0,
        frequency_penalty=-1.0, repetition_penalty=1.5, logit_bias={7: -100.0}, seed=3,
        stop_token_ids=frozenset({2, 4}),
    )  # fmt: skip


DEFAULTS = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1)


def test_the_model_s_values_where_the_client_is_silent() -> None:
    limits = replace(LIMITS, defaults=DEFAULTS)
    params = resolved(limits=limits)
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (
        0.6, 0.9, 20, 0.05, 1.1,
    )  # fmt: skip
    params = resolved(limits=limits, temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1)
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (0, 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 0}, "temperature", 0.0),
        ({"top_p": 0}, "top_p", 1.0),
        ({"seed": -1}, "seed", 2**63 - 1),
        ({"seed": 0}, "seed", 0),
        ({"ignore_eos": True}, "stop_token_ids", frozenset()),
        ({"ignore_eos": True, "stop_token_ids": [2]}, "stop_token_ids", frozenset({2})),
        ({"max_completion_tokens": 7}, "max_tokens", 7),
        ({"min_tokens": 30}, "max_tokens", 30),
    ],
)
def test_values_that_engines_need_not_know(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(resolved(**fields), name) == value


@pytest.mark.parametrize(
    ("prompt_tokens", "fields", "max_tokens"),
    [(10, {}, 20), (90, {}, 10), (99, {}, 1), (99, {"max_tokens": 1}, 1), (10, {"max_tokens": 90}, 90)],
)
def test_the_room_in_the_context(prompt_tokens: int, fields: dict[str, Any], max_tokens: int) -> None:
    assert resolved(prompt_tokens, **fields).max_tokens == max_tokens


@pytest.mark.parametrize(
    ("prompt_tokens", "fields", "asked"),
    [
        (10, {"max_tokens": 91}, "101 tokens were requested: 10 in the messages and 91 for the completion"),
        (10, {"max_completion_tokens": 91}, "101 tokens were requested: 10 in the messages and 91 for the completion"),
        (90, {"min_tokens": 11}, "101 tokens were requested: 90 in the messages and 11 for the completion"),
        (100, {}, "100 tokens were requested: 100 in the messages, which leaves no room for an answer"),
        (101, {}, "101 tokens were requested: 101 in the messages, which leaves no room for an answer"),
    ],
)
def test_beyond_the_context(prompt_tokens: int, fields: dict[str, Any], asked: str) -> None:
    error = refusal(prompt_tokens, **fields)
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert error.message == f"This model's maximum context length is 100 tokens, but {asked}."


def test_a_completion_s_prompt_is_blamed_by_its_own_name() -> None:
    request = CompletionRequest.model_validate_json('{"model": "m", "prompt": "p", "max_tokens": 100}')
    with pytest.raises(InvalidRequest, match="10 in the prompt and 100 for the completion") as caught:
        resolve(request, 10, LIMITS)
    assert caught.value.param == "prompt"


def test_an_empty_prompt() -> None:
    assert refusal(0).message == "The messages must have at least one token."


@pytest.mark.parametrize("fields", [{"logit_bias": {"50": 1}}, {"stop_token_ids": [3, 50]}], ids=str)
def test_token_ids_outside_the_vocabulary(fields: dict[str, Any]) -> None:
    (name,) = fields
    error = refusal(**fields)
    assert (error.param, error.code) == (name, "invalid_value")
    assert error.message == f"'{name}': token id 50 is outside this model's vocabulary of 50 tokens."


# generation_config.json


def test_defaults_of_a_model(tmp_path: Path) -> None:
    text = (
        '{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "eos_token_id": 2}'
    )
    (tmp_path / "generation_config.json").write_text(text)
    assert SamplingDefaults.load(tmp_path) == DEFAULTS


@pytest.mark.parametrize(
    ("raw", "temperature"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, None),
        ({}, None),
    ],
)
def test_a_model_that_does_not_sample_is_greedy(raw: dict[str, Any], temperature: float | None) -> None:
    defaults = SamplingDefaults.parse(raw)
    assert defaults.temperature == temperature
    assert resolved(limits=replace(LIMITS, defaults=defaults), temperature=0.9).temperature == 0.9


NONSENSE = [
    "",
    "{",
    "[]",
    "5",
    "null",
    '{"temperature": "hot", "top_p": 2, "top_k": -1, "min_p": null}',
    '{"temperature": NaN, "top_p": true, "repetition_penalty": 0, "top_k": 1e999}',
    '{"top_k": 1' + "0" * 400 + "}",
    "[" * 100_000,
]


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_what_makes_no_sense_is_silence(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert SamplingDefaults.load(tmp_path) == SamplingDefaults()


def test_no_file_is_silence(tmp_path: Path) -> None:
    assert SamplingDefaults.load(tmp_path) == SamplingDefaults()
    (tmp_path / "generation_config.json").write_bytes(b"\xff")
    assert SamplingDefaults.load(tmp_path) == SamplingDefaults()


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.integers(1, 150),
    max_tokens=st.none() | st.integers(1, 150),
    min_tokens=st.none() | st.integers(0, 150),
)
def test_what_is_resolved_fits(prompt: int, max_tokens: int | None, min_tokens: int | None) -> None:
    try:
        params = resolved(prompt, max_tokens=max_tokens, min_tokens=min_tokens)
    except InvalidRequest:
        return
    assert prompt + params.max_tokens <= LIMITS.context
    assert 0 <= params.min_tokens <= params.max_tokens
    assert max_tokens in (None, params.max_tokens)


def test_a_parameter_that_the_engine_lacks_is_refused_by_name() -> None:
    limits = replace(LIMITS, sampling=frozenset({"max_tokens", "temperature"}))
    for name, value in {"min_p": 0.5, "seed": 0, "logit_bias": {"1": 1}, "ignore_eos": True, "top_k": 5}.items():
        with pytest.raises(UnsupportedParameter) as caught:
            resolved(10, limits, **{name: value})
        assert caught.value.param == name
    neutral = {"min_p": 0, "logit_bias": {}, "ignore_eos": False, "top_k": -1, "top_p": 1, "stop_token_ids": []}
    resolved(10, limits, temperature=0.5, **neutral)


def test_a_model_s_defaults_are_those_that_its_engine_has() -> None:
    defaults = SamplingDefaults(temperature=0.5, min_p=0.1, top_k=3)
    assert defaults.only(frozenset({"top_k"})) == SamplingDefaults(top_k=3)
    assert defaults.only(None) is defaults
