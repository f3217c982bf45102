"""OpenAI's own client, unchanged, against a real server: shapes, streams, and classes of errors."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from engines.fake_tokens import fake_answer
from tests.penstock_process import PenstockProcess
from tests.wire.conftest import BLOCKED, MakeKey

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]


def answer_to(prompt: str | list[int], num_tokens: int) -> str:
    return bytes(fake_answer(list(prompt.encode()) if isinstance(prompt, str) else prompt, num_tokens)).decode()


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> openai.OpenAI:
    return server.sdk()


def test_chat(sdk: openai.OpenAI) -> None:
    made = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=12)
    assert made.id.startswith("chatcmpl-")
    assert (made.object, made.model) == ("chat.completion", "echo@1")
    assert made.system_fingerprint is not None
    assert made.system_fingerprint.startswith("fp_")
    (choice,) = made.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.content) == ("assistant", answer_to("hello", 12))
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (5, 12, 17)
    assert made.usage.prompt_tokens_details is not None
    assert made.usage.completion_tokens_details is not None
    assert made._request_id is not None
    assert made._request_id.startswith("req-")


async def test_chat_with_the_async_client(server: PenstockProcess) -> None:
    async with server.async_sdk() as sdk:
        made = await sdk.chat.completions.create(model="echo", messages=MESSAGES, max_completion_tokens=4)
        assert made.choices[0].message.content == answer_to("hello", 4)
        stream = await sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=4, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(parts) == answer_to("hello", 4)
        assert "echo" in [model.id async for model in sdk.models.list()]


def test_content_parts_are_joined(sdk: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    made = sdk.chat.completions.create(model="echo", messages=[{"role": "user", "content": parts}], max_tokens=6)  # type: ignore[list-item, misc]
    assert made.choices[0].message.content == answer_to("hello", 6)


@pytest.mark.parametrize("usage", [False, True])
def test_chat_stream(sdk: openai.OpenAI, usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    stream = sdk.chat.completions.create(model="gpt-4", messages=MESSAGES, max_tokens=12, stream=True, **options)
    chunks = list(stream)
    assert {(c.id, c.created, c.model, c.object, c.system_fingerprint) for c in chunks} == {
        (chunks[0].id, chunks[0].created, "echo@1", "chat.completion.chunk", chunks[0].system_fingerprint)
    }
    if usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 12)
    assert all("usage" in chunk.model_fields_set for chunk in chunks) == usage
    assert all(chunk.usage is None for chunk in chunks)
    _check_choices([chunk.choices[0] for chunk in chunks])


def _check_choices(choices: list[Any]) -> None:
    assert choices[0].delta.role == "assistant"
    assert choices[0].delta.content == ""
    assert all(choice.delta.role is None for choice in choices[1:])
    assert "".join(choice.delta.content or "" for choice in choices) == answer_to("hello", 12)
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == "length"


def test_a_stop_string_ends_the_text_before_it(sdk: openai.OpenAI) -> None:
    text = answer_to("hello", 40)
    stop = text[20:23]
    made = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=40, stop=[stop])
    assert made.choices[0].message.content == text[: text.index(stop)]
    assert made.choices[0].finish_reason == "stop"


TOKENS = [104, 105]
PROMPTS = [
    ("hi", ["hi"]),
    (["hi", "ho"], ["hi", "ho"]),
    (TOKENS, [TOKENS]),
    ([TOKENS, [1, 2, 3]], [TOKENS, [1, 2, 3]]),
]


@pytest.mark.parametrize(("prompt", "each"), PROMPTS)
def test_completions(sdk: openai.OpenAI, prompt: Any, each: list[Any]) -> None:
    made = sdk.completions.create(model="echo", prompt=prompt, max_tokens=5)
    assert (made.object, made.model) == ("text_completion", "echo@1")
    assert [choice.text for choice in made.choices] == [answer_to(one, 5) for one in each]
    assert [choice.index for choice in made.choices] == list(range(len(each)))
    assert {choice.finish_reason for choice in made.choices} == {"length"}
    assert made.usage is not None
    assert made.usage.prompt_tokens == sum(map(len, each))
    assert made.usage.completion_tokens == 5 * len(each)


@pytest.mark.parametrize(("prompt", "each"), PROMPTS)
def test_streamed_completions(sdk: openai.OpenAI, prompt: Any, each: list[Any]) -> None:
    options: Any = {"stream_options": {"include_usage": True}}
    *chunks, last = sdk.completions.create(model="echo", prompt=prompt, max_tokens=5, stream=True, **options)
    texts, reasons = [""] * len(each), {}
    for chunk in chunks:
        (choice,) = chunk.choices
        assert choice.index not in reasons, "text after the end of its choice"
        texts[choice.index] += choice.text
        if choice.finish_reason is not None:  # type: ignore[redundant-expr]
            reasons[choice.index] = choice.finish_reason
    assert texts == [answer_to(one, 5) for one in each]
    assert reasons == dict.fromkeys(range(len(each)), "length")
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == sum(map(len, each)) + 5 * len(each)


def test_models_are_listed_under_every_name(sdk: openai.OpenAI) -> None:
    listed = {model.id: model for model in sdk.models.list()}
    vectors = {"vectors", "vectors@1", "pairs", "pairs@1"}
    assert listed.keys() == {"echo", "echo@1", "echo@2", "slow/model", "slow/model@1", "gpt-4", "pinned"} | vectors
    assert {(model.object, model.owned_by) for model in listed.values()} == {("model", "penstock")}


@pytest.mark.parametrize("name", ["echo", "echo@2", "gpt-4", "slow/model", "slow/model@1"])
def test_a_model_is_retrieved_by_each_of_its_names(sdk: openai.OpenAI, name: str) -> None:
    assert sdk.models.retrieve(name).id == name


@pytest.mark.parametrize(
    ("name", "resolved"),
    [("echo", "echo@1"), ("echo@1", "echo@1"), ("echo@2", "echo@2"), ("gpt-4", "echo@1"), ("pinned", "echo@2")],
)
def test_the_answer_names_the_version_that_made_it(sdk: openai.OpenAI, name: str, resolved: str) -> None:
    assert sdk.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1).model == resolved
    assert sdk.completions.create(model=name, prompt="x", max_tokens=1).model == resolved


# --- classes of errors


def test_authentication_error(server: PenstockProcess) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        server.sdk(api_key="sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id is not None


def test_not_found_error(sdk: openai.OpenAI) -> None:
    for call in (
        lambda: sdk.models.retrieve("nobody"),
        lambda: sdk.chat.completions.create(model="echo@3", messages=MESSAGES),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.get("/nowhere", cast_to=object)
    assert caught.value.code == "unknown_url"


def test_bad_request_error(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="echo", messages=MESSAGES, temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="echo", messages=MESSAGES, stream=True, store=True)
    assert (caught.value.param, caught.value.code) == ("store", "unsupported_parameter")


def test_a_prompt_beyond_the_context_names_both_numbers(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="echo@2", messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.code == "context_length_exceeded"
    assert "4096" in caught.value.message
    assert "5000" in caught.value.message


def test_a_blocked_term_is_a_bad_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="echo", messages=[{"role": "user", "content": f"a {BLOCKED.upper()}!"}])
    assert (caught.value.code, caught.value.param) == ("content_filter", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="echo", prompt=["fine", BLOCKED])
    assert (caught.value.code, caught.value.param) == ("content_filter", "prompt")


def test_permission_denied_error(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = server.sdk(api_key=make_key(features=["chat"]))
    assert sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1).choices
    with pytest.raises(openai.PermissionDeniedError) as caught:
        sdk.completions.create(model="echo", prompt="x")
    assert caught.value.code == "permission_denied"
    with pytest.raises(openai.PermissionDeniedError):
        sdk.chat.completions.create(model="echo", messages=MESSAGES, stream=True)


def test_other_statuses_are_status_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.put("/models", cast_to=object)
    assert (caught.value.status_code, caught.value.response.headers["allow"]) == (405, "GET")


def test_rate_limit_error(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = server.sdk(api_key=make_key("one-request"))
    sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")


def _statuses(sdk: openai.OpenAI) -> list[int]:
    """Of every HTTP answer that this client sees, retries included."""
    seen: list[int] = []
    sdk._client.event_hooks["response"].append(lambda response: seen.append(response.status_code))
    return seen


def test_the_sdk_waits_for_a_rate_and_succeeds(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = server.sdk(api_key=make_key("tokens"), max_retries=2)
    seen = _statuses(sdk)
    sdk.completions.create(model="echo", prompt="x", max_tokens=599)
    made = sdk.completions.create(model="echo", prompt="x", max_tokens=15)
    assert made.choices[0].text == answer_to("x", 15)
    assert seen == [200, 429, 200]


def test_the_sdk_does_not_retry_a_spent_budget(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = server.sdk(api_key=make_key("budget"), max_retries=2)
    seen = _statuses(sdk)
    sdk.completions.create(model="echo", prompt="x", max_tokens=30)
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.completions.create(model="echo", prompt="x", max_tokens=30)
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert seen == [200, 429]
