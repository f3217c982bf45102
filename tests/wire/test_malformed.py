"""No body, however malformed, is answered with 5xx, and none changes how the next one is answered."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.conftest import chat_body, check_error

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EXAMPLES = int(os.environ.get("WIRE_EXAMPLES", "150"))

COMPLETION = {"model": "echo", "prompt": "x", "max_tokens": 2}
HEAD = b'{"model":"echo","max_tokens":1,"messages":[{"role":"user","content":"x"}]'


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"}", b"[]", b"null", b"1", b'"text"', b"{}", b"[{}]", b"\xff\xfe", b"\x00", b"\xef\xbb\xbf{}",
        HEAD, HEAD + b"}}", HEAD + b"} x", HEAD + b',"seed":NaN}', HEAD + b',"temperature":Infinity}',
        HEAD + b',"temperature":-Infinity}', HEAD + b',"temperature":1e999}', HEAD + b',"seed":1e400}',
        HEAD + b',"seed":' + b"9" * 5000 + b"}", HEAD + b',"max_tokens":1}', HEAD + b',"user":"\\ud800"}',
        HEAD + b',"user":"\xff"}', HEAD + b',"user":"\x01"}', HEAD + b",}", HEAD + b',"a":{"a":{"a":',
        HEAD + b',"stop":' + b"[" * 100_000 + b"]" * 100_000 + b"}", HEAD + b',"\\ud800":1}', b"model=echo&prompt=x",
        HEAD + b',"metadata":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}", b"<xml/>", b"--boundary\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_is_no_json_object_of_ours(http: httpx.Client, path: str, body: bytes) -> None:
    check_error(http.post(path, content=body), 400)


def _message(**fields: object) -> dict[str, Any]:
    return {"messages": [fields]}


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": None}), ("model", {"model": 1}), ("model", {"model": ""}), ("model", {"model": ["echo"]}),
    ("model", {"model": "x" * 10_000}), ("messages", {"messages": None}), ("messages", {"messages": []}),
    ("messages", {"messages": "hello"}), ("messages", {"messages": {}}), ("messages.0", {"messages": ["hello"]}),
    ("messages.0", _message(content="x")), ("messages.0.role", _message(role="robot", content="x")),
    ("messages.0.role", _message(role=1, content="x")), ("messages.0", _message(role="user")),
    ("messages.0.content", _message(role="user", content=7)), ("messages.0", _message(role="tool", content="x")),
    ("messages.0.content", _message(role="user", content=[])),
    ("messages.0.content.0", _message(role="user", content=[{"type": "image_url", "image_url": {"url": "data:,"}}])),
    ("messages.0.mood", _message(role="user", content="x", mood="good")),
    ("max_tokens", {"max_tokens": 0}), ("max_tokens", {"max_tokens": -1}), ("max_tokens", {"max_tokens": "8"}),
    ("max_tokens", {"max_tokens": 1.5}), ("max_tokens", {"max_tokens": True}), ("max_tokens", {"max_tokens": 2**63}),
    ("max_completion_tokens", {"max_completion_tokens": -1}), ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 2.1}), ("temperature", {"temperature": "1"}), ("top_p", {"top_p": 1.1}),
    ("top_k", {"top_k": -2}), ("min_p", {"min_p": -1}), ("presence_penalty", {"presence_penalty": 3}),
    ("frequency_penalty", {"frequency_penalty": -3}), ("repetition_penalty", {"repetition_penalty": 0}),
    ("seed", {"seed": 2**63}), ("seed", {"seed": 1.5}), ("stop", {"stop": 1}), ("stop", {"stop": ["x"] * 17}),
    ("stop.0", {"stop": [""]}), ("stop.0", {"stop": ["x" * 257]}), ("stop_token_ids", {"stop_token_ids": [10**9]}),
    ("logit_bias", {"logit_bias": {"300": 1}}), ("logit_bias.7", {"logit_bias": {"7": 101}}),
    ("logit_bias", {"logit_bias": {str(i): 0 for i in range(1025)}}), ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options.x", {"stream": True, "stream_options": {"x": 1}}), ("n", {"n": 0}), ("n", {"n": 17}),
    ("min_tokens", {"min_tokens": 9}), ("metadata", {"metadata": {str(i): "" for i in range(17)}}),
    ("user", {"user": 1}), ("temprature", {"temprature": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "changes"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    http: httpx.Client, param: str, changes: dict[str, Any]
) -> None:
    error = check_error(http.post(CHAT, json=chat_body() | changes), 400)
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param)
    assert len(error["message"]) < 1000


UNSUPPORTED: dict[str, Any] = {
    "response_format": {"type": "json_object"}, "prompt_logprobs": 1, "return_token_ids": True,
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [{"name": "f"}],
    "modalities": ["text", "audio"], "audio": {"voice": "x", "format": "wav"},
    "prediction": {"type": "content", "content": "x"}, "reasoning_effort": "high", "verbosity": "low",
    "web_search_options": {}, "moderation": {}, "store": True,
    "chat_template_kwargs": {"x": 1}, "best_of": 2, "echo": True, "suffix": "x", "guided_json": {}, "cache_salt": "x",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("tool_choice", "required"), ("function_call", {"name": "f"})])
def test_a_choice_without_anything_to_choose(http: httpx.Client, name: str, value: Any) -> None:
    assert check_error(http.post(CHAT, json=chat_body(**{name: value})), 400, "invalid_value")["param"] == name


OF_COMPLETIONS = {"suffix", "prompt_logprobs", "return_token_ids"}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_parameter_is_refused_by_name(http: httpx.Client, name: str) -> None:
    error = check_error(http.post(CHAT, json=chat_body(**{name: UNSUPPORTED[name]})), 400, "unsupported_parameter")
    assert error["param"] == name
    if name in OF_COMPLETIONS:
        answer = http.post(COMPLETIONS, json=COMPLETION | {name: UNSUPPORTED[name]})
        assert check_error(answer, 400, "unsupported_parameter")["param"] == name


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat_body()), (COMPLETIONS, COMPLETION)])
def test_nobody_pushes_to_the_front(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    for later in (0, 1, 100, 2**31 - 1):
        assert http.post(path, json=body | {"priority": later}).status_code == 200
    for wrong in (-1, 1.5, "0", 2**31):
        assert check_error(http.post(path, json=body | {"priority": wrong}), 400)["param"] == "priority"


@pytest.mark.parametrize(
    "prompt", [None, "", [], [""], {}, 1, True, [True], [1, "x"], ["x", 1], [[]], [-1], [256], [2**70],
               [1.5], [[1], [999]], ["x"] * 65, [[[1]]], ["x", ""]],
)  # fmt: skip
def test_a_wrong_prompt(http: httpx.Client, prompt: object) -> None:
    assert check_error(http.post(COMPLETIONS, json=COMPLETION | {"prompt": prompt}), 400)["param"] == "prompt"


@pytest.mark.parametrize(
    "name", ["", "ECHO", "echo@", "@1", "echo@1@1", "模型", "echo\x00", "../echo", "x" * 256, "\u202e"]
)
def test_an_unusual_model(http: httpx.Client, name: str) -> None:
    answer = http.post(CHAT, json=chat_body(model=name))
    assert len(check_error(answer, 404 if name else 400)["message"]) < 300


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "\\"},
        {"content-type": "multipart/form-data"}, {"content-type": "application/json; charset=utf-16"}, {},
    ],
)  # fmt: skip
def test_the_content_type_changes_nothing(http: httpx.Client, headers: dict[str, str]) -> None:
    """The body is JSON or it is refused; no other parser of it can be asked for."""
    good = json.dumps(chat_body()).encode()
    assert http.post(CHAT, content=good, headers=headers).status_code == 200
    check_error(http.post(CHAT, content=b"model=echo", headers=headers), 400, "invalid_json")


def test_a_compressed_body_is_not_unpacked(http: httpx.Client) -> None:
    body = gzip.compress(json.dumps(chat_body()).encode())
    check_error(http.post(CHAT, content=body, headers={"content-encoding": "gzip"}), 400, "invalid_json")


# --- mutations of requests to a model of a small context: none of them is a long one

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [*UNSUPPORTED, *(param.split(".")[0] for param, _ in WRONG), "prompt", "suffix", "type", "request_id", "ignore_eos"]
)
NUMBERS = st.sampled_from([0, -1, 1, 2, 0.5, 1e308, -1e-308, 2**31, 2**53, 2**64, 10**30, True])


def _mutated(base: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Fields replaced, added or left out; then perhaps bytes cut, doubled or overwritten."""
    changed = st.dictionaries(NAMES, JSON | NUMBERS, max_size=3).map(lambda changes: base | changes)
    fewer = st.sampled_from(list(base)).map(lambda name: {k: v for k, v in base.items() if k != name})
    bodies = (changed | changed | fewer).map(lambda body: json.dumps(body).encode())
    return bodies | st.tuples(bodies, st.integers(0, 200), st.integers(0, 8), st.binary(max_size=4)).map(
        lambda t: t[0][: t[1]] + t[3] + t[0][t[1] + t[2] :]
    )


@pytest.fixture(scope="module")
def check_served(http: httpx.Client) -> Callable[[str, bytes], None]:
    def check(path: str, body: bytes) -> None:
        answer = http.post(path, content=body)
        if answer.status_code == 200:
            assert answer.content.endswith((b"}", b"data: [DONE]\n\n"))
        else:
            assert 400 <= answer.status_code < 500, (body, answer.text)
            check_error(answer, answer.status_code)

    return check


def _fuzzed(test: Callable[..., None]) -> Callable[..., None]:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=quiet, database=None)(test)


@_fuzzed
@given(body=_mutated(chat_body(model="echo@2", stream=False)))
def test_mutated_chats(check_served: Callable[[str, bytes], None], body: bytes) -> None:
    check_served(CHAT, body)


@_fuzzed
@given(body=_mutated(chat_body(model="echo@2", stream=True)))
def test_mutated_streams(check_served: Callable[[str, bytes], None], body: bytes) -> None:
    check_served(CHAT, body)


@_fuzzed
@given(body=_mutated(COMPLETION | {"model": "echo@2"}))
def test_mutated_completions(check_served: Callable[[str, bytes], None], body: bytes) -> None:
    check_served(COMPLETIONS, body)


def test_the_server_still_serves(http: httpx.Client) -> None:
    assert http.post(CHAT, json=chat_body()).status_code == 200
    assert http.get("/readyz").status_code == 200
