"""Moderations, tokenize and detokenize against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import ModerationCreateResponse

from tests.penstock_process import FAKE_MODEL, PenstockProcess
from tests.wire.conftest import BLOCKED, HATED, check_error

PATHS = ["/v1/moderations", "/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"]


@pytest.mark.parametrize("path", PATHS)
def test_nobody_without_a_key(stranger: httpx.Client, path: str) -> None:
    check_error(stranger.post(path, json={}), 401, "invalid_api_key")


# --- moderations


def test_moderations_by_the_sdk(server: PenstockProcess) -> None:
    made = server.sdk().moderations.create(
        model="omni-moderation-latest", input=["harmless", f"so {HATED.upper()}!", BLOCKED]
    )
    harmless, hated, blocked = made.results
    assert not harmless.flagged
    assert not any(value for value in harmless.categories.to_dict().values())
    assert hated.flagged
    assert (hated.categories.hate, hated.categories.self_harm_intent, hated.categories.violence) == (True, True, False)
    assert (hated.category_scores.hate, hated.category_scores.violence) == (1.0, 0.0)
    assert blocked.flagged
    assert not blocked.categories.hate
    assert blocked.categories.to_dict()["blocklist"] is True
    assert (made.model, made.id[:5]) == ("content-filter", "modr-")


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ("harmless", [False]),
        (["a", HATED], [False, True]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": HATED}], [True]),
    ],
)
def test_the_forms_of_moderation_input(http: httpx.Client, given: Any, flags: list[bool]) -> None:
    answer = http.post("/v1/moderations", json={"input": given})
    parsed = ModerationCreateResponse.model_validate_json(answer.content, strict=True)
    assert [result.flagged for result in parsed.results] == flags


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": 3}, 400, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, 400, "input.0.type"),
        ({"input": "x", "threshold": 0.5}, 400, "threshold"),
        ({"input": "x", "model": "echo"}, 404, "model"),
    ],
)
def test_a_moderation_that_is_wrong(http: httpx.Client, fields: dict[str, Any], status: int, param: str) -> None:
    assert check_error(http.post("/v1/moderations", json=fields), status)["param"] == param


def test_without_a_filter_nothing_is_called_harmless(tmp_path: Path) -> None:
    with PenstockProcess(tmp_path, FAKE_MODEL) as server:
        with pytest.raises(openai.NotFoundError) as caught:
            server.sdk().moderations.create(input="x")
        assert caught.value.code == "moderation_not_configured"


# --- tokens


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_text_there_and_back(http: httpx.Client, prefix: str) -> None:
    request = {"model": "echo@2", "prompt": "héllo", "return_token_strs": True}
    answer = http.post(f"{prefix}/tokenize", json=request).json()
    tokens = list("héllo".encode())
    assert answer == {
        "count": 6,
        "max_model_len": 4096,
        "tokens": tokens,
        "token_strs": [chr(token) for token in tokens],
    }
    back = http.post(f"{prefix}/detokenize", json={"model": "echo", "tokens": tokens})
    assert back.json() == {"prompt": "héllo"}


def test_messages(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "yo"}]}]
    answer = http.post("/tokenize", json={"model": "echo", "messages": messages, "add_generation_prompt": True}).json()
    assert (answer["tokens"], answer["count"], answer["token_strs"]) == (list(b"hiyo"), 4, None)


def test_nothing_is_nothing(http: httpx.Client) -> None:
    assert http.post("/tokenize", json={"model": "echo", "prompt": ""}).json()["tokens"] == []
    assert http.post("/detokenize", json={"model": "echo", "tokens": []}).json() == {"prompt": ""}


def test_a_model_for_vectors_has_tokens_too(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": "vectors", "prompt": "ab"}).json()
    assert (answer["count"], answer["max_model_len"]) == (2, 2048)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}, "chat_template"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
            "continue_final_message",
        ),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "truncate": 3}, "truncate"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    assert check_error(http.post(path, json={"model": "echo", **fields}), 400)["param"] == param


def test_a_model_that_is_not_there(http: httpx.Client) -> None:
    check_error(http.post("/tokenize", json={"model": "nobody", "prompt": "a"}), 404, "model_not_found")
