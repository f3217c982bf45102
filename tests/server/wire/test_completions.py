"""server/wire/completions.py and models.py: the legacy endpoint and the list of models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion, Model
from openai.types.completion_create_params import CompletionCreateParamsBase
from pydantic import ValidationError

from engines.types import FinishReason, Usage
from server.errors import APIError, InvalidRequest, UnsupportedParameter
from server.wire.body import parse_json
from server.wire.common import Answer, ResponseHead, encode
from server.wire.completions import CompletionChunkEncoder, CompletionRequest, completion
from server.wire.models import Model as WireModel
from server.wire.models import model_list
from server.wire.prompts import check_token_prompt

HEAD = ResponseHead("cmpl-1", 1_700_000_000, "m@1", "fp_1")
EXTRA_BODY = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "id_slot",
    "cache_prompt",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "priority",
    "metadata",
}


def parse(**fields: Any) -> CompletionRequest:
    return parse_json(json.dumps({"model": "m", "prompt": "p"} | fields).encode(), CompletionRequest)


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_every_field_of_the_sdk_is_known() -> None:
    sdk = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert set(CompletionRequest.model_fields) == sdk | EXTRA_BODY


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", [""]),
        ("a", ["a"]),
        (["a", ""], ["a", ""]),
        ([1, 0], [[1, 0]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([[1], "a"], [[1], "a"]),
        (["a"] * 64, ["a"] * 64),
        (list(range(1000)), [list(range(1000))]),
    ],
)
def test_prompts(prompt: Any, prompts: list[Any]) -> None:
    assert parse(prompt=prompt).prompt == prompts


@pytest.mark.parametrize(
    "prompt",
    [None, 5, {}, True, [], [[]], ["a", 1], [1, "a"], [True], [1, True], [-1], [1.0], [[1], []], [None],
     [[[1]]], [2**31], ["a"] * 65, [[1]] * 65],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_prompts_that_are_refused(prompt: Any) -> None:
    assert refusal(prompt=prompt).param == "prompt"


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("suffix", "", "x"),
        ("prompt_logprobs", None, 1),
        ("return_token_ids", False, True),
        ("return_tokens_as_token_ids", False, True),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name: str, neutral: Any, other: Any) -> None:
    parse(**{name: neutral})
    error = refusal(**{name: other})
    assert (type(error), error.param) == (UnsupportedParameter, name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 21}, "best_of"),
        ({"n": 17}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"max_tokens": 0, "min_tokens": 1, "echo": True}, "min_tokens"),
    ],
    ids=str,
)
def test_what_does_not_go_together(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_how_many_are_computed_and_how_many_told() -> None:
    asked = [({}, 1, 1), ({"n": 3}, 3, 3), ({"best_of": 4}, 4, 1), ({"best_of": 4, "n": 2}, 4, 2)]
    asked += [({"best_of": 1, "stream": True}, 1, 1)]
    for fields, num_samples, num_choices in asked:
        body = parse(**fields)
        assert (body.num_samples, body.num_choices) == (num_samples, num_choices)


def test_the_prompt_s_tokens_are_told_where_it_is_echoed() -> None:
    assert parse(logprobs=2).prompt_token_logprobs is None
    assert parse(logprobs=2, echo=True).prompt_token_logprobs == 2
    assert parse(echo=True, max_tokens=0).only_prompt


def test_chat_s_own_parameters_are_unknown_here() -> None:
    for name in ("messages", "max_completion_tokens", "tools", "response_format"):
        assert refusal(**{name: None}).code == "unsupported_parameter"


def test_token_ids_outside_the_vocabulary() -> None:
    check_token_prompt([0, 9], vocab_size=10)
    with pytest.raises(InvalidRequest, match="Token id 10 is outside this model's vocabulary of 10 tokens"):
        check_token_prompt([10, 1], vocab_size=10)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(CompletionRequest.model_fields)), values)
def test_any_json_parses_or_is_refused(name: str, value: Any) -> None:
    try:
        CompletionRequest.model_validate_json(json.dumps({"model": "m", "prompt": "p", name: value}))
    except (ValidationError, APIError):
        return


def test_the_whole_answer_is_openai_s() -> None:
    answers = [Answer("a", FinishReason.STOP), Answer("b", FinishReason.CONTENT_FILTER)]
    body = completion(HEAD, answers, Usage(4, 0, 2))
    parsed = Completion.model_validate_json(body, strict=True, extra="forbid")
    assert json.loads(body) == parsed.to_dict(mode="json")
    assert [(c.index, c.text, c.finish_reason) for c in parsed.choices] == [
        (0, "a", "stop"),
        (1, "b", "content_filter"),
    ]


def test_chunks_are_openai_s() -> None:
    encoder = CompletionChunkEncoder(HEAD, include_usage=True, choices=3)
    assert encoder.role_chunk() == b""
    text, last, usage = (
        encoder.text_chunk("é", 2),
        encoder.finish_chunk(FinishReason.STOP, 2),
        encoder.usage_chunk(Usage()),
    )
    choice = {"text": "é", "index": 2, "logprobs": None, "finish_reason": None}
    assert json.loads(text)["choices"] == [choice]
    assert json.loads(text)["usage"] is None
    assert json.loads(last)["choices"] == [choice | {"text": "", "finish_reason": "stop"}]
    assert json.loads(usage)["choices"] == []
    for chunk in (last, usage):
        Completion.model_validate_json(chunk, strict=True, extra="forbid")


def test_models_are_openai_s() -> None:
    body = encode(model_list([WireModel(id="m@1", created=5), WireModel(id="m", created=5)]))
    listed = json.loads(body)
    assert (listed["object"], [entry["id"] for entry in listed["data"]]) == ("list", ["m@1", "m"])
    parsed = Model.model_validate(listed["data"][0], strict=True, extra="forbid")
    assert (parsed.object, parsed.created, parsed.owned_by) == ("model", 5, "penstock")
