"""One streaming request over HTTP, to any OpenAI-compatible server; every outcome becomes a record."""

import asyncio
import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from time import perf_counter
from types import TracebackType
from typing import Self

import httpx
import msgspec

from loadtest.answer import UNREADABLE, AnswerReader, describe_error
from loadtest.records import BenchError, Failure, PlannedRequest, RequestRecord, one_line

CONNECT_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 1.0  # after [DONE]: reading on to the body's end lets the connection be used again
MAX_ERROR_BODY_BYTES = 64 * 1024


class Endpoint(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"


PATHS = {Endpoint.CHAT: "chat/completions", Endpoint.COMPLETIONS: "completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """Which server, and how to ask it. The key stays out of the repr. `says_done`: its streams end in [DONE], as
    OpenAI's do; else the body's end behind a finish_reason is one. `temperature` None: the server's own."""

    base_url: httpx.URL
    api_key: str | None = field(default=None, repr=False)
    endpoint: Endpoint = Endpoint.CHAT
    ignore_eos: bool = False
    says_done: bool = True
    temperature: float | None = None

    @property
    def shown_url(self) -> str:
        return shown(self.base_url)


def base_url(text: str) -> httpx.URL:
    """A base URL as users write it: the scheme may be left out, and `/v1` unless the path has a version."""
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise BenchError(f"{one_line(text)} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise BenchError(f"{one_line(text)} is no http or https URL")
    path = url.path.rstrip("/")
    if not any(re.fullmatch(r"v\d+\w*", part) for part in path.split("/")):
        path += "/v1"
    return url.copy_with(path=path, query=None, fragment=None)


def shown(url: httpx.URL) -> str:
    """The URL without a user or password that it may carry."""
    return str(url.copy_with(username=None, password=None)) if url.userinfo else str(url)


class LoadClient:
    """Sends planned requests over a pool of `concurrency` kept-alive connections; None: as many as are needed.

    A refused request is a result, not retried: retries would hide what the server does under load.
    """

    def __init__(
        self,
        target: Target,
        *,
        concurrency: int | None,
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._url = shown(target.base_url)
        self._http = httpx.AsyncClient(
            base_url=target.base_url,
            headers=_headers(target.api_key),
            timeout=httpx.Timeout(None, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            transport=transport,
            trust_env=not _is_loopback(target.base_url.host),  # no proxy stands before this machine
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def resolve_model(self, wanted: str | None) -> str:
        """`wanted`, else the server's first model. Raises BenchError: unreachable, key refused, no model."""
        try:
            async with asyncio.timeout(min(30.0, self._timeout_s)):
                response = await self._http.get("models")
        except (httpx.HTTPError, TimeoutError) as error:
            raise BenchError(f"cannot reach {self._url}: {self._words(error)}") from None
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise BenchError(f"{self._url} refused the key (HTTP 401); give one with --api-key")
        if wanted is not None:
            return wanted  # a server need not list its models to serve one
        if not response.is_success:
            raise BenchError(f"{self._url}/models answered HTTP {response.status_code}; name one by --model")
        return self._first_model(response.content)

    async def send(self, planned: PlannedRequest, model: str, due_s: float | None = None) -> RequestRecord:
        """One request, start to end. `due_s`: when it should have been sent; None: now. Raises nothing but
        cancellation."""
        body = msgspec.json.encode(request_body(planned, model, self._target))
        request = self._http.build_request("POST", PATHS[self._target.endpoint], content=body)
        reader = AnswerReader(says_done=self._target.says_done)
        sent_s = perf_counter()
        failure = await self._attempt(request, reader)
        end_s = reader.done_s if reader.done_s is not None else perf_counter()
        start_s = sent_s if due_s is None else min(due_s, sent_s)
        return RequestRecord(planned, start_s, end_s, reader.content_times_s, reader.usage, failure, sent_s)

    async def _attempt(self, request: httpx.Request, reader: AnswerReader) -> Failure | None:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                failure = await self._exchange(request, reader, deadline)
        except TimeoutError:
            failure = Failure("timeout", f"no [DONE] within {self._timeout_s:g} s")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = Failure("cannot connect", self._words(error))
        except httpx.HTTPError as error:
            failure = Failure("connection lost", self._words(error))
        if failure is None or reader.done:  # what breaks after [DONE] is not this request's failure
            return None
        return Failure(self._clean(failure.reason, limit=60), self._clean(failure.detail))

    async def _exchange(
        self, request: httpx.Request, reader: AnswerReader, deadline: asyncio.Timeout
    ) -> Failure | None:
        response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                return await _refusal(response)
            async for chunk in response.aiter_bytes():
                self._feed(reader, chunk, deadline)
                if reader.failure is not None:
                    return reader.failure
        finally:
            await response.aclose()
        return reader.end_of_body(response.headers.get("content-type", "no content type"))

    def _feed(self, reader: AnswerReader, chunk: bytes, deadline: asyncio.Timeout) -> None:
        now_s = perf_counter()  # before parsing: the moment the bytes arrived
        was_done = reader.done
        reader.feed(chunk, now_s)
        if reader.done and not was_done:
            deadline.reschedule(asyncio.get_running_loop().time() + DRAIN_TIMEOUT_S)

    def _first_model(self, body: bytes) -> str:
        try:
            listed = msgspec.json.decode(body, type=_ModelList)
        except UNREADABLE:
            raise BenchError(f"{self._url}/models is no model list; is this the base URL?") from None
        if not listed.data:
            raise BenchError(f"{self._url} lists no model; name one by --model")
        return listed.data[0].id

    def _words(self, error: Exception) -> str:
        return self._clean(str(error)) or type(error).__name__

    def _clean(self, text: str, limit: int = 200) -> str:
        """The key goes first, then the cut: a cut key would pass unseen."""
        return one_line(text, limit=limit, secret=self._target.api_key)


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


def request_body(planned: PlannedRequest, model: str, target: Target) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "max_tokens": planned.max_tokens, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if target.endpoint is Endpoint.CHAT:
        body["messages"] = [{"role": "user", "content": planned.prompt}]
    else:
        body["prompt"] = planned.prompt
    if target.ignore_eos:  # left out unless asked for: many servers refuse a field they do not know
        body["ignore_eos"] = True
    if target.temperature is not None:
        body["temperature"] = target.temperature
    return body


def _headers(api_key: str | None) -> dict[str, str]:
    """Raises BenchError for a key that no header can carry."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    headers["Accept-Encoding"] = "identity"  # compression would hold events back and delay timestamps
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise BenchError("the API key has characters that an HTTP header cannot carry")
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


async def _refusal(response: httpx.Response) -> Failure:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ERROR_BODY_BYTES:
            break
    return describe_error(body).as_failure(f"HTTP {response.status_code}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
