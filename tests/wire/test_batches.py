"""Batches as OpenAI's client runs them, and files that can't be run."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest

from engines.fake_tokens import fake_answer
from tests.batch_files import CHAT, begin, chat_line, counts, output, wait, wait_for_lines
from tests.penstock_process import PenstockProcess
from tests.wire.conftest import BLOCKED, HATED, MakeKey, check_error


@pytest.fixture
def key(make_key: MakeKey) -> str:
    return make_key()


@pytest.fixture
def sdk(server: PenstockProcess, key: str) -> openai.OpenAI:
    return server.sdk(api_key=key)


def test_a_batch_from_its_file_to_its_results(sdk: openai.OpenAI) -> None:
    lines = [chat_line(f"line-{number}", f"hello {number}") for number in range(40)]
    lines[3] = chat_line("line-3", max_tokens=-1)
    lines[5] = chat_line("line-5", BLOCKED)
    made = begin(sdk, [*lines, ""], metadata={"name": "nightly"})
    assert (made.status, made.metadata, made.completion_window) == ("validating", {"name": "nightly"}, "24h")
    assert made.expires_at == made.created_at + 86_400
    batch = wait(sdk, made)
    assert (batch.status, counts(batch), batch.model) == ("completed", (40, 38, 2), "echo")
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(times, key=lambda moment: moment or 0)
    assert batch.usage is not None
    assert (batch.usage.output_tokens, batch.usage.total_tokens) == (38 * 4, batch.usage.input_tokens + 38 * 4)

    found = output(sdk, batch.output_file_id)
    assert [line["custom_id"] for line in found] == [f"line-{number}" for number in range(40) if number not in (3, 5)]
    first = found[0]
    assert first.keys() == {"id", "custom_id", "response", "error"}
    assert (first["error"], first["response"]["status_code"]) == (None, 200)
    assert first["response"]["request_id"].startswith("req-")
    assert (
        first["response"]["body"]["choices"][0]["message"]["content"]
        == bytes(fake_answer(list(b"hello 0"), 4)).decode()
    )
    failed = output(sdk, batch.error_file_id)
    assert [line["custom_id"] for line in failed] == ["line-3", "line-5"]
    assert {line["response"]["status_code"] for line in failed} == {400}
    assert failed[1]["response"]["body"]["error"]["code"] == "content_filter"
    for file_id in (batch.output_file_id, batch.error_file_id):
        file = sdk.files.retrieve(str(file_id))
        assert (file.purpose, file.expires_at is not None) == ("batch_output", True)
    assert [listed.id for listed in sdk.batches.list()] == [batch.id]


ENDPOINTS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"model": "echo", "prompt": "hello", "max_tokens": 3}, "choices"),
    ("/v1/embeddings", {"model": "vectors", "input": ["a", "b"]}, "data"),
    ("/v1/moderations", {"input": HATED}, "results"),
    ("/v1/responses", {"model": "echo", "input": "hello", "max_output_tokens": 16}, "output"),
]


@pytest.mark.parametrize(("endpoint", "body", "key_of_body"), ENDPOINTS)
def test_every_endpoint(sdk: openai.OpenAI, endpoint: Any, body: dict[str, Any], key_of_body: str) -> None:
    line = {"custom_id": "one", "method": "POST", "url": endpoint, "body": body}
    batch = wait(sdk, begin(sdk, [line], endpoint))
    assert (batch.status, counts(batch)) == ("completed", (1, 1, 0))
    assert output(sdk, batch.output_file_id)[0]["response"]["body"][key_of_body]


WRONG: list[tuple[list[dict[str, Any] | str], list[tuple[str, int | None]]]] = [
    ([], [("empty_file", None)]),
    (["{"], [("invalid_json_line", 1)]),
    ([chat_line("a"), chat_line("a")], [("duplicate_custom_id", 2)]),
    ([chat_line("a"), chat_line("b") | {"method": "GET"}], [("invalid_method", 2)]),
    ([chat_line("a") | {"url": "/v1/embeddings"}], [("invalid_url", 1)]),
    ([chat_line("a", model="nowhere")], [("model_not_found", 1)]),
    ([chat_line("a", stream=True)], [("unsupported_parameter", 1)]),
    ([chat_line("a") | {"extra": 1}, {"custom_id": "b"}], [("invalid_request", 1), ("invalid_request", 2)]),
    ([chat_line("")], [("invalid_custom_id", 1)]),
    (["", chat_line("a"), "", "[]"], [("invalid_request", 4)]),
]


@pytest.mark.parametrize(("lines", "expected"), WRONG)
def test_a_file_that_can_not_be_run(
    sdk: openai.OpenAI, lines: list[dict[str, Any] | str], expected: list[tuple[str, int | None]]
) -> None:
    batch = wait(sdk, begin(sdk, lines))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == expected
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_cancelled_it_keeps_what_has_run(sdk: openai.OpenAI) -> None:
    batch = begin(sdk, [chat_line(str(number), model="echo" if number < 20 else "slow/model") for number in range(400)])
    wait_for_lines(sdk, batch, 20)
    with pytest.raises(openai.ConflictError):
        sdk.files.delete(batch.input_file_id)
    assert sdk.batches.cancel(batch.id).status == "cancelling"
    batch = wait(sdk, batch)
    assert batch.status == "cancelled"
    assert None not in (batch.cancelling_at, batch.cancelled_at)
    done, rest = output(sdk, batch.output_file_id), output(sdk, batch.error_file_id)
    assert 20 <= len(done) < 400
    assert counts(batch) == (400, len(done), 400 - len(done))
    assert {line["custom_id"] for line in done + rest} == {str(number) for number in range(400)}
    assert {line["error"]["code"] for line in rest} == {"batch_cancelled"}
    assert all(line["response"] is None for line in rest)
    assert sdk.batches.cancel(batch.id).status == "cancelled"
    sdk.files.delete(batch.input_file_id)


def test_what_is_over_can_not_be_cancelled(sdk: openai.OpenAI) -> None:
    batch = wait(sdk, begin(sdk, [chat_line("a")]))
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(batch.id)


def test_another_accounts_batches_are_not_there(sdk: openai.OpenAI, server: PenstockProcess, make_key: MakeKey) -> None:
    batch = wait(sdk, begin(sdk, [chat_line("a")]))
    other = server.sdk(api_key=make_key())
    for ask in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(str(batch.output_file_id))
    with pytest.raises(openai.BadRequestError) as caught:
        other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")  # type: ignore[arg-type]
    assert caught.value.param == "input_file_id"
    assert list(other.batches.list()) == []


def test_a_list_is_paged(sdk: openai.OpenAI) -> None:
    ids = [begin(sdk, [chat_line("a")]).id for _ in range(3)]
    page = sdk.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (ids[:0:-1], True)
    assert [batch.id for batch in sdk.batches.list(limit=1)] == ids[::-1]


def test_its_lines_count_as_its_keys_requests(server: PenstockProcess, key: str, sdk: openai.OpenAI) -> None:
    wait(sdk, begin(sdk, [chat_line(str(number)) for number in range(5)]))
    with server.http(key) as client:
        for _ in range(200):
            groups = client.get("/v1/usage?group_by=feature").json()["data"]
            used = {group["feature"]: (group["requests"], group["completion_tokens"]) for group in groups}
            if used.get("batch") == (5, 20):
                break
            time.sleep(0.05)  # usage is written in batches
    assert used["chat"] == used["batch"] == (5, 20)


def test_a_limit_makes_it_slower_and_fails_nothing(server: PenstockProcess, make_key: MakeKey) -> None:
    """One request at a time: sixteen lines that try at once are told to wait, and do."""
    sdk = server.sdk(api_key=make_key("single"))
    batch = wait(sdk, begin(sdk, [chat_line(str(number)) for number in range(30)]))
    assert (batch.status, counts(batch)) == ("completed", (30, 30, 0))


def test_a_revoked_key_stops_its_batches(server: PenstockProcess, admin: httpx.Client, new_key: Any) -> None:
    made = new_key()
    other = admin.post("/admin/v1/keys", json={"account": made["account"]}).raise_for_status().json()
    sdk = server.sdk(api_key=made["key"])
    batch = begin(sdk, [chat_line(str(number), model="slow/model", max_tokens=20) for number in range(100)])
    wait(sdk, batch, ["in_progress"])
    admin.post(f"/admin/v1/keys/{made['id']}/revoke").raise_for_status()
    batch = wait(server.sdk(api_key=other["key"]), batch)
    assert batch.status == "cancelled"
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or ()] == ["invalid_api_key"]


def test_a_key_without_the_feature(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = server.sdk(api_key=make_key(features=["chat"]))
    with pytest.raises(openai.PermissionDeniedError):
        begin(sdk, [chat_line("a")])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_request_is_refused_by_name(http: httpx.Client, changes: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    error = check_error(http.post("/v1/batches", content=json.dumps(body | changes)), 400)
    assert error["param"] == param


def test_only_files_for_batches(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=b"{}", purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")  # type: ignore[arg-type]
    assert caught.value.param == "input_file_id"
