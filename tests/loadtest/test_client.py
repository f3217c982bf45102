import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from loadtest.client import Endpoint, LoadClient, Target, base_url, request_body, shown
from loadtest.records import BenchError, PlannedRequest, RequestRecord, one_line

PLANNED = PlannedRequest("of the river", 3, 8)
KEY = "secret-key-0123456789"
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {"content-type": "text/event-stream"}

Handler = Callable[[httpx.Request], httpx.Response]


class Body(httpx.AsyncByteStream):
    """Chunks, then an error, or silence for ever when `hang`."""

    def __init__(self, *chunks: bytes, error: Exception | None = None, hang: bool = False) -> None:
        self.chunks, self.error, self.hang = chunks, error, hang
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.error is not None:
            raise self.error
        if self.hang:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


def client(handler: Handler, *, timeout_s: float = 5.0) -> LoadClient:
    target = Target(base_url("http://test"), KEY)
    return LoadClient(target, concurrency=1, timeout_s=timeout_s, transport=httpx.MockTransport(handler))


async def send(handler: Handler, *, timeout_s: float = 5.0) -> RequestRecord:
    async with client(handler, timeout_s=timeout_s) as load:
        return await load.send(PLANNED, "m")


async def stream(body: Body, *, timeout_s: float = 5.0) -> RequestRecord:
    record = await send(lambda _: httpx.Response(200, headers=STREAM_HEADERS, stream=body), timeout_s=timeout_s)
    assert body.closed
    return record


def reason(record: RequestRecord) -> str | None:
    return record.failure.reason if record.failure is not None else None


async def test_success_has_ordered_times() -> None:
    record = await stream(Body(TOKEN, TOKEN, DONE))
    assert record.failure is None
    first, second = record.content_times_s
    assert record.start_s <= first <= second <= record.end_s


async def test_silence_is_a_timeout() -> None:
    record = await stream(Body(TOKEN, hang=True), timeout_s=0.05)
    assert reason(record) == "timeout"


async def test_a_body_left_open_after_done_is_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.client.DRAIN_TIMEOUT_S", 0.01)
    record = await stream(Body(TOKEN, DONE, hang=True), timeout_s=60.0)
    assert record.failure is None


async def test_a_reset_after_done_is_success() -> None:
    assert reason(await stream(Body(TOKEN, DONE, error=httpx.ReadError("reset")))) is None


async def test_a_reset_before_done_is_a_failure() -> None:
    assert reason(await stream(Body(TOKEN, error=httpx.ReadError("reset")))) == "connection lost"


async def test_an_error_event_ends_the_request_at_once() -> None:
    record = await stream(Body(TOKEN, b'data: {"error":{"message":"m","code":"c"}}\n\n', hang=True))
    assert reason(record) == "error event c"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("refused"), "cannot connect"),
        (httpx.ConnectTimeout("slow"), "cannot connect"),
        (httpx.RemoteProtocolError("gone"), "connection lost"),
    ],
)
async def test_transport_errors(error: Exception, expected: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    assert reason(await send(fail)) == expected


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
async def test_every_status_but_2xx_is_a_failure(status: int) -> None:
    record = await send(lambda _: httpx.Response(status, text="no"))
    assert reason(record) == f"HTTP {status}"


async def test_a_server_that_echoes_the_key_does_not_make_us_print_it() -> None:
    words = "x" * 195 + f" {KEY} \x1b[31m"
    record = await send(lambda _: httpx.Response(401, json={"error": {"message": words, "code": KEY}}))
    assert record.failure is not None
    assert KEY[:6] not in f"{record.failure}"
    assert record.failure.reason == "HTTP 401 ***"
    assert "\x1b" not in record.failure.detail


async def test_the_key_goes_in_the_header_only() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, headers=STREAM_HEADERS, content=TOKEN + DONE)

    await send(handler)
    assert seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert seen[0].headers["accept-encoding"] == "identity"
    assert str(seen[0].url) == "http://test/v1/chat/completions"
    assert KEY.encode() not in seen[0].content
    assert json.loads(seen[0].content)["messages"] == [{"role": "user", "content": "of the river"}]
    assert KEY not in repr(Target(base_url("http://test"), KEY))


def test_a_key_no_header_can_carry() -> None:
    with pytest.raises(BenchError, match="cannot carry"):
        LoadClient(Target(base_url("http://test"), "schlüssel"), concurrency=1, timeout_s=1.0)


def test_request_body_asks_for_nothing_unusual() -> None:
    body = request_body(PLANNED, "m", Target(base_url("http://test"), endpoint=Endpoint.COMPLETIONS))
    assert body == {
        "model": "m",
        "prompt": "of the river",
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = request_body(PLANNED, "m", Target(base_url("http://test"), ignore_eos=True, temperature=0.0))
    assert (asked["ignore_eos"], asked["temperature"]) == (True, 0.0)


async def test_first_model() -> None:
    async with client(lambda _: httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})) as load:
        assert await load.resolve_model(None) == "a"
        assert await load.resolve_model("b") == "b"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(401), "refused the key"),
        (httpx.Response(404), "HTTP 404"),
        (httpx.Response(200, text="<html>"), "no model list"),
        (httpx.Response(200, json={"data": []}), "lists no model"),
    ],
)
async def test_no_model_to_be_had(response: httpx.Response, words: str) -> None:
    async with client(lambda _: response) as load:
        with pytest.raises(BenchError, match=words):
            await load.resolve_model(None)


async def test_a_named_model_needs_no_list_but_a_good_key() -> None:
    async with client(lambda _: httpx.Response(404)) as load:
        assert await load.resolve_model("m") == "m"
    async with client(lambda _: httpx.Response(401)) as load:
        with pytest.raises(BenchError, match="refused the key"):
            await load.resolve_model("m")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h:8000/v1", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://h/openai", "https://h/openai/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_base_url(text: str, expected: str) -> None:
    assert str(base_url(text)) == expected


@pytest.mark.parametrize("text", ["", "ftp://h", "http://", "http://h:port"])
def test_no_url(text: str) -> None:
    with pytest.raises(BenchError):
        base_url(text)


def test_a_password_in_the_url_is_not_shown() -> None:
    assert shown(base_url("http://user:pass@h")) == "http://h/v1"


def test_one_line() -> None:
    assert one_line("a\n b\x1b[0m\t c") == "a b [0m c"
    assert one_line("x" * 9, limit=4) == "xxx…"
