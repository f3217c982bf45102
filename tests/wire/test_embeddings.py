"""Embeddings, rerank and score against a real server: OpenAI's own client and types, quotas, and what is refused."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from engines.fake_vectors import DIM, fake_vector
from tests.penstock_process import ADMIN_KEY, PenstockProcess
from tests.wire.conftest import BLOCKED, MakeKey, check_error

TEXTS = ["hello", "a longer text than that", "z", "hello"]


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> openai.OpenAI:
    return server.sdk()


def expected(text: str | list[int]) -> Any:
    return fake_vector(list(text.encode()) if isinstance(text, str) else text)


def body(**fields: object) -> dict[str, Any]:
    return {"model": "vectors", "input": "hello", **fields}


def test_the_sdk_s_default_is_base64(sdk: openai.OpenAI, http: httpx.Client) -> None:
    made = sdk.embeddings.create(model="vectors", input=TEXTS)
    assert [item.index for item in made.data] == [0, 1, 2, 3]
    for item, text in zip(made.data, TEXTS, strict=True):
        np.testing.assert_array_equal(np.array(item.embedding, np.float32), expected(text))
    size = sum(map(len, TEXTS))
    assert (made.model, made.usage.prompt_tokens, made.usage.total_tokens) == ("vectors@1", size, size)
    raw = http.post("/v1/embeddings", json=body(input=TEXTS, encoding_format="base64")).json()
    assert [base64.b64decode(item["embedding"]) for item in raw["data"]] == [expected(t).tobytes() for t in TEXTS]


def test_float_is_the_same(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json=body(input=TEXTS))
    parsed = CreateEmbeddingResponse.model_validate_json(answer.content, strict=True)
    for item, text in zip(parsed.data, TEXTS, strict=True):
        assert np.array_equal(np.array(item.embedding, np.float32), expected(text))
    assert "x-ratelimit-limit-requests" not in answer.headers, "the account has no limits"


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("hello", ["hello"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", [3]], ["a", [3]]),
        ([104, "ell", 111], ["hello"]),  # the engine's tokens are bytes
    ],
)
def test_the_forms_of_input(sdk: openai.OpenAI, given: Any, texts: list[Any]) -> None:
    made = sdk.embeddings.create(model="vectors", input=given, user="someone")
    assert len(made.data) == len(texts)
    for item, text in zip(made.data, texts, strict=True):
        assert np.array_equal(np.array(item.embedding, np.float32), expected(text))


def test_fewer_dimensions_are_of_length_one_again(sdk: openai.OpenAI) -> None:
    made = sdk.embeddings.create(model="vectors", input="hello", dimensions=3)
    cut = expected("hello")[:3]
    np.testing.assert_allclose(made.data[0].embedding, cut / np.linalg.norm(cut), atol=1e-6)
    whole = sdk.embeddings.create(model="vectors", input="hello", dimensions=DIM)
    assert np.array_equal(np.array(whole.data[0].embedding, np.float32), expected("hello"))


def test_as_many_inputs_as_openai_takes(http: httpx.Client) -> None:
    texts = [str(i) * (i % 7 + 1) for i in range(2048)]
    data = http.post("/v1/embeddings", json=body(input=texts)).json()["data"]
    assert [item["index"] for item in data] == list(range(2048))
    assert all(np.array_equal(np.float32(item["embedding"]), expected(texts[item["index"]])) for item in data[::97])
    error = check_error(http.post("/v1/embeddings", json=body(input=["x"] * 2049)), 400)
    assert (error["param"], "at most 2048" in error["message"]) == ("input", True)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input.1", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a", True]}, "input", "invalid_value"),
        ({"input": {"text": "a"}}, "input", "invalid_value"),
        ({"input": ["a", "b" * 2049]}, "input.1", "context_length_exceeded"),
        ({"input": [[1], [256]]}, "input.1", "invalid_value"),
        ({"input": ["a" * 2000] * 151}, "input", "context_length_exceeded"),
        ({"input": ["fine", BLOCKED]}, "input.1", "content_filter"),
        ({"input": list(BLOCKED.encode())}, "input", "content_filter"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"dimensions": DIM + 1}, "dimensions", "invalid_value"),
        ({"dimensions": "3"}, "dimensions", "invalid_value"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"truncate": True}, "truncate", "unsupported_parameter"),
        ({"model": "pairs"}, "model", "unsupported_model"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, fields: dict[str, Any], param: str, code: str) -> None:
    error = check_error(http.post("/v1/embeddings", json=body(**fields)), 400, code)
    assert error["param"] == param


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    check_error(http.post("/v1/embeddings", json=body(model="nobody")), 404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}), ("/v1/completions", {"prompt": "x"})],
)
def test_a_model_for_vectors_does_not_chat(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    error = check_error(http.post(path, json={"model": "vectors", **fields}), 400, "unsupported_model")
    assert error["param"] == "model"


# --- who may, and how much


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"])
def test_nobody_without_a_key(stranger: httpx.Client, path: str) -> None:
    check_error(stranger.post(path, json=body()), 401, "invalid_api_key")


def test_a_key_for_other_features_may_not(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key(features=["chat"])) as client:
        check_error(client.post("/v1/embeddings", json=body()), 403, "permission_denied")
    with server.http(make_key(features=["rerank"])) as client:
        answer = client.post("/v1/rerank", json={"model": "pairs", "query": "q", "documents": ["d"]})
        assert answer.status_code == 200


def test_tokens_are_charged_to_the_token(server: PenstockProcess, make_key: MakeKey) -> None:
    """The plan has 40 tokens a day."""
    with server.http(make_key("budget")) as client:
        first = client.post("/v1/embeddings", json=body(input=["x" * 10, "y" * 15]))
        assert first.headers["x-ratelimit-remaining-tokens"] == "15"
        error = check_error(client.post("/v1/embeddings", json=body(input="x" * 16)), 429, "insufficient_quota")
        assert "40 tokens per day" in error["message"]
        assert client.post("/v1/embeddings", json=body(input="x" * 15)).status_code == 200
        check_error(client.post("/v1/embeddings", json=body(input="x")), 429, "insufficient_quota")


def test_usage_has_a_row_of_its_endpoint(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key()) as client:
        client.post("/v1/embeddings", json=body(input=["x" * 10, "y" * 15])).raise_for_status()
        client.post("/v1/rerank", json={"model": "pairs", "query": "qq", "documents": ["a", "b"]}).raise_for_status()
        deadline = time.monotonic() + 30
        while len(rows := client.get("/v1/usage", params={"group_by": "feature"}).json()["data"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert {row["feature"]: (row["requests"], row["prompt_tokens"], row["completion_tokens"]) for row in rows} == {
        "embeddings": (1, 25, 0),
        "rerank": (1, 6, 0),
    }
    labels = {"model": "vectors", "endpoint": "/v1/embeddings", "outcome": "stop"}
    assert server.metric("penstock_requests_total", **labels) >= 1


# --- rerank and score


def cosine(one: str, other: str) -> float:
    return float(expected(one).astype(np.float64) @ expected(other).astype(np.float64))


def test_rerank_by_cosine(http: httpx.Client) -> None:
    documents = ["one", "two", {"text": "three"}, "four"]
    request = {"model": "vectors", "query": "q", "documents": documents, "top_n": 3, "return_documents": True}
    answer = http.post("/v1/rerank", json=request).json()
    texts = ["one", "two", "three", "four"]
    order = sorted(range(4), key=lambda i: -cosine("q", texts[i]))[:3]
    assert [result["index"] for result in answer["results"]] == order
    assert [result["document"] for result in answer["results"]] == [{"text": texts[i]} for i in order]
    np.testing.assert_allclose(
        [result["relevance_score"] for result in answer["results"]], [cosine("q", texts[i]) for i in order], atol=1e-6
    )
    assert (answer["model"], answer["usage"]) == ("vectors@1", {"prompt_tokens": 16, "total_tokens": 16})
    assert answer["id"].startswith("rerank-")


def test_rerank_by_a_cross_encoder(http: httpx.Client) -> None:
    request = {"model": "pairs", "query": "q", "documents": ["one", "two", "three"]}
    results = http.post("/rerank", json=request).json()["results"]
    scores = [float(expected("q" + text)[0]) for text in ("one", "two", "three")]
    assert [result["index"] for result in results] == sorted(range(3), key=lambda i: -scores[i])
    assert [result["relevance_score"] for result in results] == sorted(scores, reverse=True)
    assert all(result.keys() == {"index", "relevance_score"} for result in results)


@pytest.mark.parametrize(("left", "right"), [("a", "b"), ("a", ["b", "c"]), (["a", "d"], ["b", "c"])])
@pytest.mark.parametrize("model", ["vectors", "pairs"])
def test_score(http: httpx.Client, model: str, left: Any, right: Any) -> None:
    answer = http.post("/v1/score", json={"model": model, "text_1": left, "text_2": right}).json()
    lefts, rights = ([x] if isinstance(x, str) else x for x in (left, right))
    pairs = zip(lefts * len(rights) if len(lefts) == 1 else lefts, rights, strict=True)
    wanted = [cosine(a, b) if model == "vectors" else float(expected(a + b)[0]) for a, b in pairs]
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(i, "score") for i in range(len(rights))]
    np.testing.assert_allclose([item["score"] for item in answer["data"]], wanted, atol=1e-6)
    assert (answer["object"], answer["model"]) == ("list", f"{model}@1")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a", ""]}, "documents.1"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q", "documents": ["a", {"url": "x"}]}, "documents.1"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
        ("/v1/rerank", {"query": "q", "documents": ["a", "b" * 2049]}, "documents.1"),
        ("/v1/rerank", {"query": BLOCKED, "documents": ["a"]}, "query"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": ["b", BLOCKED]}, "text_2.1"),
        ("/v1/score", {"text_1": "a", "text_2": 3}, "text_2"),
    ],
)
def test_a_comparison_that_is_wrong(http: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    assert check_error(http.post(path, json={"model": "vectors", **fields}), 400)["param"] == param


def test_a_model_that_chats_embeds_and_compares_as_well(sdk: openai.OpenAI, http: httpx.Client) -> None:
    chat: Any = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50, "stream": True}
    with sdk.chat.completions.create(**chat) as stream:
        next(iter(stream))
        made = sdk.embeddings.create(model="echo", input=TEXTS)
    for item, text in zip(made.data, TEXTS, strict=True):
        assert np.array_equal(np.array(item.embedding, np.float32), expected(text))
    assert (made.model, made.usage.prompt_tokens) == ("echo@1", sum(map(len, TEXTS)))
    answers = [
        http.post("/v1/rerank", json={"model": model, "query": "hello", "documents": TEXTS}).json()
        for model in ("echo", "vectors")
    ]
    assert answers[0]["results"] == answers[1]["results"]


def test_an_admin_key_is_no_api_key(server: PenstockProcess) -> None:
    with server.http(ADMIN_KEY) as client:
        check_error(client.post("/v1/embeddings", json=body()), 403, "permission_denied")
