"""Files as OpenAI's client handles them, and forms as nobody should send them."""

from __future__ import annotations

import io
from typing import Any

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject

from tests.penstock_process import PenstockProcess
from tests.wire.conftest import MakeKey, check_error

CONTENT = bytes(range(256)) * 5000  # more than a chunk


@pytest.fixture
def sdk(server: PenstockProcess, make_key: MakeKey) -> openai.OpenAI:
    """An account of its own, so that lists are short."""
    return server.sdk(api_key=make_key())


def strictly(model: type[Any], made: Any) -> None:
    model.model_validate(made.model_dump(exclude_unset=True), strict=True, extra="forbid")


def test_a_file_from_its_upload_to_its_end(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("data.jsonl", io.BytesIO(CONTENT)), purpose="user_data")
    strictly(FileObject, file)
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(CONTENT),
        "data.jsonl",
        "user_data",
        "processed",
    )
    assert file.expires_at is None
    assert sdk.files.retrieve(file.id) == file
    assert sdk.files.content(file.id).read() == CONTENT
    deleted = sdk.files.delete(file.id)
    strictly(FileDeleted, deleted)
    assert deleted.deleted
    for ask in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)


def test_a_file_expires_as_asked_and_batches_files_always(sdk: openai.OpenAI) -> None:
    asked = sdk.files.create(file=b"{}", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
    assert asked.expires_at is not None
    assert 3600 <= asked.expires_at - asked.created_at <= 3700
    batch = sdk.files.create(file=b"{}", purpose="batch")
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at >= 30 * 86400


def test_lists_are_paged_ordered_and_filtered(sdk: openai.OpenAI) -> None:
    purposes: list[Any] = ["batch", "user_data", "batch"]
    ids = [sdk.files.create(file=b"x", purpose=purpose).id for purpose in purposes]
    page = sdk.files.list(limit=2)
    assert ([file.id for file in page.data], page.has_more) == (ids[:0:-1], True)
    assert [file.id for file in sdk.files.list(order="asc", limit=1)] == ids  # over three pages
    assert [file.id for file in sdk.files.list(purpose="batch", order="asc")] == [ids[0], ids[2]]
    for file in sdk.files.list(limit=1):  # each page's last file is gone before the next page is asked for
        sdk.files.delete(file.id)
    assert list(sdk.files.list()) == []


def test_another_accounts_files_are_not_there(sdk: openai.OpenAI, server: PenstockProcess, make_key: MakeKey) -> None:
    file = sdk.files.create(file=b"mine", purpose="batch")
    other = server.sdk(api_key=make_key())
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)
    assert list(other.files.list()) == []
    assert sdk.files.content(file.id).read() == b"mine"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("../../etc/passwd", "passwd"), ("C:\\x\\a.jsonl", "a.jsonl"), ("..", "upload"), ("日本.jsonl", "日本.jsonl")],
)
def test_a_name_is_never_a_path(http: httpx.Client, sent: str, kept: str) -> None:
    made = http.post("/v1/files", files={"file": (sent, b"x")}, data={"purpose": "batch"}).json()
    assert made["filename"] == kept
    shown = http.get(f"/v1/files/{made['id']}/content").headers["content-disposition"]
    assert shown.startswith("attachment; filename*=UTF-8''")
    assert "/" not in shown


def test_the_file_may_come_before_its_purpose(http: httpx.Client) -> None:
    made = http.post("/v1/files", files=[("file", ("a", b"abc")), ("purpose", (None, "assistants"))]).json()
    assert (made["bytes"], made["purpose"]) == (3, "assistants")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "purpose", "missing_required_parameter"),
        ({"purpose": "vision"}, "purpose", "invalid_value"),
        ({"purpose": "evals"}, "purpose", "invalid_value"),
        ({"purpose": "x" * 2000}, "purpose", "invalid_value"),
        ({"purpose": "batch", "extra": "1"}, "extra", "unsupported_parameter"),
        ({"purpose": "batch", "expires_after[anchor]": "now"}, "expires_after.anchor", "invalid_value"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after.seconds",
            "invalid_value",
        ),
        ({"purpose": ["batch", "batch"]}, "purpose", "invalid_value"),
    ],
)
def test_a_wrong_form_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str, code: str) -> None:
    before = http.get("/v1/files").json()["data"]
    error = check_error(http.post("/v1/files", files={"file": ("a", b"x")}, data=fields), 400, code)
    assert error["param"] == param
    assert http.get("/v1/files").json()["data"] == before


def test_a_form_needs_a_file(http: httpx.Client) -> None:
    answer = http.post("/v1/files", files=[("purpose", (None, "batch"))])
    assert check_error(answer, 400, "missing_required_parameter")["param"] == "file"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\nA: b\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 9000 + b"\r\n\r\nabc\r\n--x--\r\n"),
    ],
)
def test_what_is_no_form_is_refused(http: httpx.Client, kind: str, body: bytes) -> None:
    check_error(http.post("/v1/files", content=body, headers={"content-type": kind}), 400, "invalid_value")


def test_a_file_has_a_bound(http: httpx.Client) -> None:
    ok = http.post("/v1/files", files={"file": ("a", b"x" * 2_000_000)}, data={"purpose": "batch"})
    assert ok.status_code == 200
    for size in (2_000_001, 3_000_000):
        answer = http.post("/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "batch"})
        assert check_error(answer, 413, "request_too_large")["param"] == "file"


def test_an_account_has_a_bound(sdk: openai.OpenAI) -> None:
    first = sdk.files.create(file=b"x" * 2_000_000, purpose="batch")
    sdk.files.create(file=b"x" * 1_000_000, purpose="batch")
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.files.create(file=b"x" * 1_000_001, purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (413, "storage_limit_exceeded")
    sdk.files.delete(first.id)
    sdk.files.create(file=b"x" * 1_000_001, purpose="batch")


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "order=up", "before=x", "limit=1&limit=2"])
def test_a_wrong_query_is_refused(http: httpx.Client, query: str) -> None:
    check_error(http.get(f"/v1/files?{query}"), 400)


def test_nothing_without_a_key(stranger: httpx.Client) -> None:
    for method, path in [("POST", ""), ("GET", ""), ("GET", "/file-1"), ("GET", "/file-1/content"), ("DELETE", "/x")]:
        check_error(stranger.request(method, f"/v1/files{path}"), 401, "invalid_api_key")


def test_uploads_in_parts_are_not_there(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.uploads.create(bytes=1, filename="a", mime_type="text/jsonl", purpose="batch")
    assert caught.value.code == "unknown_url"
