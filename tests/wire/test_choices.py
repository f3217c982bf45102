"""Several answers, logprobs and the prompt's echo, as OpenAI's own client asks for them and reads them."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import httpx
import openai
import pytest
from websockets.asyncio.client import connect

from engines.fake import fake_logprobs, fake_prompt_logprobs
from engines.fake_tokens import digest_prompt, fake_answer
from tests.penstock_process import API_KEY, PenstockProcess
from tests.wire.conftest import chat_body, check_error

PROMPT = "several " * 9  # more than two of the engine's blocks
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
USAGE: Any = {"stream_options": {"include_usage": True}}
LN2 = 0.6931471805599453


def answer_to(prompt: str, num_tokens: int) -> str:
    return bytes(fake_answer(list(prompt.encode()), num_tokens)).decode()


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> openai.OpenAI:
    return server.sdk()


def test_several_answers_and_one_usage(sdk: openai.OpenAI) -> None:
    made = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=7, n=4)
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert {choice.message.content for choice in made.choices} == {answer_to(PROMPT, 7)}
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(PROMPT), 28)
    assert made.usage.prompt_tokens_details is not None
    assert made.usage.prompt_tokens_details.cached_tokens == 0


def test_the_quota_is_charged_what_usage_says(server: PenstockProcess, make_key: Any) -> None:
    """Of 600 tokens a minute: the reservation holds the prompt once, and so fits."""
    with server.http(make_key("tokens")) as client:
        body = chat_body("x" * 300, n=10, max_tokens=29)
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.json()["usage"]["total_tokens"] == 590
        too_many = client.post("/v1/chat/completions", json=chat_body("x" * 300, n=11, max_tokens=29))
        assert "619" in check_error(too_many, 400, "request_above_limit")["message"]


def test_a_stream_of_several(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=5, n=3, stream=True, **USAGE)
    *chunks, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(PROMPT), 15)
    choices = sorted((choice for chunk in chunks for choice in chunk.choices), key=lambda choice: choice.index)
    for _, each in groupby(choices, key=lambda choice: choice.index):
        first, *middle, end = each
        assert (first.delta.role, end.finish_reason) == ("assistant", "length")
        assert "".join(choice.delta.content or "" for choice in middle) == answer_to(PROMPT, 5)
    assert {choice.index for choice in choices} == {0, 1, 2}


async def test_several_over_a_websocket(server: PenstockProcess) -> None:
    texts, ended, told = ["", ""], set(), 0
    async with connect(server.websocket_url, additional_headers={"Authorization": f"Bearer {API_KEY}"}) as ws:
        await ws.send(json.dumps(chat_body(max_tokens=5, n=2, logprobs=True)))
        while len(ended) < 2:
            (choice,) = json.loads(await ws.recv())["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            told += len((choice["logprobs"] or {"content": []})["content"])
            if choice["finish_reason"]:
                ended.add(choice["index"])
    assert texts == [answer_to("hello", 5)] * 2
    assert told == 10


def test_chat_logprobs(sdk: openai.OpenAI) -> None:
    made = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=3)
    (choice,) = made.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(each.token for each in choice.logprobs.content) == choice.message.content
    for token, each in zip(fake_answer(list(PROMPT.encode()), 6), choice.logprobs.content, strict=True):
        expected = fake_logprobs(token, token, 3)
        assert (each.bytes, each.logprob) == ([token], expected.logprob)
        assert [(ord(top.token), top.logprob) for top in each.top_logprobs] == expected.top


@pytest.mark.parametrize("stop", [None, answer_to(PROMPT, 40)[20:24]])
def test_streamed_logprobs_come_with_their_text(sdk: openai.OpenAI, stop: str | None) -> None:
    options: Any = {} if stop is None else {"stop": [stop]}
    stream = sdk.chat.completions.create(
        model="echo", messages=MESSAGES, max_tokens=40, logprobs=True, stream=True, **options
    )
    told = text = ""
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        if choice.logprobs is not None:
            told += "".join(each.token for each in choice.logprobs.content or ())
        assert told == text
    assert text == answer_to(PROMPT, 40)[: 20 if stop else 40]


def test_logprobs_are_null_where_nobody_asks(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=chat_body(logprobs=False)).json()
    assert answer["choices"][0]["logprobs"] is None


# --- completions


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_times_answers(sdk: openai.OpenAI, stream: bool) -> None:
    made: Any = sdk.completions.create(model="echo", prompt=["a", "b"], max_tokens=4, n=3, stream=stream)
    texts = [""] * 6
    for part in made if stream else [made]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [answer_to("a", 4)] * 3 + [answer_to("b", 4)] * 3


def test_the_best_of_several(sdk: openai.OpenAI) -> None:
    made = sdk.completions.create(model="echo", prompt="hello", max_tokens=4, best_of=5, n=2)
    assert [choice.text for choice in made.choices] == [answer_to("hello", 4)] * 2
    assert all(choice.logprobs is None for choice in made.choices)
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (5, 20)


def test_legacy_logprobs(sdk: openai.OpenAI) -> None:
    made = sdk.completions.create(model="echo", prompt="hello", max_tokens=4, logprobs=2)
    (choice,) = made.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.token_logprobs == pytest.approx([-LN2] * 4)
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    assert choice.logprobs.top_logprobs is not None
    assert [sorted(top.values()) for top in choice.logprobs.top_logprobs] == [pytest.approx([-2 * LN2, -LN2])] * 4


@pytest.mark.parametrize("prompt", ["hé", list("hé".encode())], ids=["text", "tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_scored(sdk: openai.OpenAI, prompt: Any, stream: bool) -> None:
    """Nothing is answered, and a probability of zero is a number."""
    made: Any = sdk.completions.create(
        model="echo", prompt=prompt, max_tokens=0, echo=True, logprobs=1, stream=stream, **(USAGE if stream else {})
    )
    parts = list(made) if stream else [made]
    choices = [choice for part in parts for choice in part.choices]
    logprobs = next(choice.logprobs for choice in choices if choice.logprobs is not None)
    assert "".join(choice.text for choice in choices) == "hé"
    assert choices[-1].finish_reason == "length"
    ids = list("hé".encode())
    expected = [fake_prompt_logprobs(digest_prompt(ids), i, token, 1) for i, token in enumerate(ids)]
    assert logprobs.tokens == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.token_logprobs == [None, -9999.0, -9999.0]
    assert logprobs.text_offset == [0, 1, 1]
    assert logprobs.top_logprobs[0] is None
    for each, top in zip(expected[1:], logprobs.top_logprobs[1:], strict=True):
        assert top[chr(each.top[0][0])] == pytest.approx(-LN2)
    usage = parts[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 0)


def test_an_echo_without_logprobs(sdk: openai.OpenAI) -> None:
    made = sdk.completions.create(model="echo", prompt=["hé", "ho"], max_tokens=3, echo=True, n=2, stop=["h"])
    assert [choice.text[:2] for choice in made.choices] == ["hé"] * 2 + ["ho"] * 2


def test_bias_stops_and_token_prompts_together(sdk: openai.OpenAI) -> None:
    stops: Any = [f"<{i}>" for i in range(15)] + [answer_to("hi", 9)[4:6]]
    made = sdk.completions.create(
        model="echo", prompt=[104, 105], max_tokens=9, stop=stops, logit_bias={"65": 5}, logprobs=0, n=2
    )
    for choice in made.choices:
        assert (choice.text, choice.finish_reason) == (answer_to("hi", 4), "stop")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == list(choice.text)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"top_logprobs": 3}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"n": 17}, "n"),
        ("chat/completions", {"prompt_logprobs": 1}, "prompt_logprobs"),
        ("completions", {"logprobs": 6}, "logprobs"),
        ("completions", {"best_of": 1, "n": 2}, "best_of"),
        ("completions", {"best_of": 2, "stream": True}, "best_of"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
    ],
)
def test_what_is_refused_by_name(http: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    body = chat_body() if path.startswith("chat") else {"model": "echo", "prompt": "x"}
    assert check_error(http.post(f"/v1/{path}", json=body | fields), 400)["param"] == param
