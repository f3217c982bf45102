"""Answers over HTTP without a server: who watches the client, what is sent when, and how each stream ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.types import FinishReason, Usage
from server.choice import Piece
from server.errors import APIError, Overloaded, SlowReader
from server.generation import Generation
from server.streaming import DONE, PING, ChunkEvents, ClientWatch, EventStream, FrameSource, WholeAnswer, in_time, sse
from server.time_limit import TimeLimit
from server.wire.chat_answer import ChatChunkEncoder, chat_completion
from server.wire.common import Answer, ResponseHead

HEAD = ResponseHead("chatcmpl-1", 1, "m@1", "fp")
BROKEN = Overloaded("The engine stopped.", code="engine_failed")


class Client:
    """The other end of an ASGI connection. `leave` is its disconnect."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.takes = True

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.takes:
            await asyncio.Event().wait()
        self.sent.append(message)

    def leave(self) -> None:
        self._gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_answered(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", False) and len(self.sent) > 1


class PaperGeneration:
    """Gives what it is told to, one entry a call of `next`: pieces, or an error to raise."""

    def __init__(self, *script: list[Piece] | Exception, prompts: int = 1, include_usage: bool = False) -> None:
        self.job = SimpleNamespace(head=HEAD, num_choices=prompts, include_usage=include_usage)
        self.headers = {"x-ratelimit-limit-requests": "1"}
        self.usage = Usage(2, 0, 3)
        self.is_done = False
        self.ended_in: list[type[BaseException] | None] = []
        self._script = list(script)
        self.waiting = asyncio.Event()

    async def __aenter__(self) -> PaperGeneration:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        await asyncio.sleep(0)
        self.ended_in.append(kind)

    async def next(self, patience: float = float("inf")) -> list[Piece]:
        if not self._script:
            self.waiting.set()
            await asyncio.Event().wait()
        entry = self._script.pop(0)
        if isinstance(entry, Exception):
            raise entry
        self.is_done = any(piece.finish_reason is not None for piece in entry)
        return entry

    async def collect(self) -> list[Answer]:
        pieces: list[Piece] = []
        while not self.is_done:
            pieces += await self.next()
        return [Answer("".join(piece.text for piece in pieces), FinishReason.LENGTH)]


def text(words: str) -> list[Piece]:
    return [Piece(0, words)]


END = [Piece(0, "!", FinishReason.LENGTH)]


def stream_of(generation: PaperGeneration, write_timeout: float = 60, keep_alive: float = 1) -> EventStream:
    encoder = ChatChunkEncoder(HEAD, include_usage=generation.job.include_usage)
    events = ChunkEvents(cast(Generation, generation), encoder)
    return EventStream(cast(Generation, generation), events, keep_alive=keep_alive, write_timeout=write_timeout)


def whole_of(generation: PaperGeneration) -> WholeAnswer:
    return WholeAnswer(cast(Generation, generation), chat_completion)


async def run(response: EventStream | WholeAnswer, client: Client) -> None:
    await response({"type": "http"}, cast(Any, client.receive), client.send)


def events(client: Client) -> list[Any]:
    parts = client.body.split(b"\n\n")
    assert parts.pop() == b""
    return [json.loads(part.removeprefix(b"data: ")) if part.startswith(b"data: {") else part for part in parts]


async def test_a_stream_from_its_role_to_done() -> None:
    client, generation = Client(), PaperGeneration(text("a"), text("b"), END, include_usage=True)
    await run(stream_of(generation), client)
    role, a, b, last, end, usage, done = events(client)
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["delta"] for chunk in (a, b, last, end)] == [{"content": c} for c in "ab!"] + [{}]
    assert end["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    assert done == b"data: [DONE]"
    assert client.is_answered
    assert generation.ended_in == [None]


async def test_the_status_is_sent_with_the_quotas_headers() -> None:
    client = Client()
    await run(stream_of(PaperGeneration(END)), client)
    headers = dict(client.sent[0]["headers"])
    assert (client.sent[0]["status"], headers[b"x-ratelimit-limit-requests"]) == (200, b"1")
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"


async def test_silence_is_filled_with_pings() -> None:
    client = Client()
    await run(stream_of(PaperGeneration([], [], text("a"), [], END)), client)
    parts = [part for part in client.body.split(b"\n\n") if part]
    assert [part == PING.strip() for part in parts] == [False, True, False, True, False, False, False]


@pytest.mark.parametrize(("keep_alive", "pings"), [(1000.0, 0), (0.0, 3)])
async def test_held_back_text_sends_no_empty_chunk_and_a_ping_when_it_is_held_long(
    keep_alive: float, pings: int
) -> None:
    client = Client()
    held = PaperGeneration(text("a"), text(""), text(""), text(""), END)
    await run(stream_of(held, keep_alive=keep_alive), client)
    assert client.body.count(PING) == pings
    assert b'"content":""' not in client.body.split(b"\n\n", 1)[1]


@pytest.mark.parametrize("make", [stream_of, whole_of])
async def test_an_error_before_the_first_byte_is_the_routes(make: Callable[[PaperGeneration], EventStream]) -> None:
    """It carries the quota's headers beside its own."""
    client, generation = Client(), PaperGeneration(Overloaded("Later.", retry_after_ms=5))
    with pytest.raises(Overloaded) as caught:
        await run(make(generation), client)
    assert caught.value.headers.keys() == {"x-ratelimit-limit-requests", "retry-after-ms", "retry-after"}
    assert client.sent == []
    assert generation.ended_in == [Overloaded]


async def test_an_error_in_mid_stream_is_its_last_event() -> None:
    client, generation = Client(), PaperGeneration(text("a"), BROKEN)
    await run(stream_of(generation), client)
    assert events(client)[-1] == BROKEN.envelope()
    assert DONE not in client.body
    assert client.is_answered


async def test_a_fault_of_ours_in_mid_stream_says_nothing_of_itself() -> None:
    client, generation = Client(), PaperGeneration(text("a"), KeyError("secret"))
    with pytest.raises(KeyError):
        await run(stream_of(generation), client)
    assert events(client)[-1]["error"]["type"] == "server_error"
    assert b"secret" not in client.body
    assert DONE not in client.body


@pytest.mark.parametrize("make", [stream_of, whole_of])
async def test_a_client_that_leaves_ends_the_work(make: Callable[[PaperGeneration], EventStream]) -> None:
    client, generation = Client(), PaperGeneration()
    task = asyncio.create_task(run(make(generation), client))
    await generation.waiting.wait()
    client.leave()
    await task
    assert generation.ended_in == [asyncio.CancelledError]
    assert client.sent == []


async def test_a_client_that_leaves_during_a_send_ends_the_work() -> None:
    client, generation = Client(), PaperGeneration(text("a"), text("b"), END)
    client.takes = False
    task = asyncio.create_task(run(stream_of(generation), client))
    await asyncio.sleep(0.01)
    client.leave()
    await task
    assert generation.ended_in == [asyncio.CancelledError]


async def test_a_reader_that_takes_nothing_is_left_quietly() -> None:
    client, generation = Client(), PaperGeneration(text("a"), END)
    response = stream_of(generation, write_timeout=0.01)
    send = client.send

    async def stalls_after_the_status(message: Any) -> None:
        await send(message)
        client.takes = False

    client.send = stalls_after_the_status  # type: ignore[method-assign]
    await run(response, client)
    assert generation.ended_in == [SlowReader]
    assert not client.is_answered


async def test_a_whole_answer() -> None:
    client, generation = Client(), PaperGeneration(text("a"), END)
    await run(whole_of(generation), client)
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "a!"
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-ratelimit-limit-requests"] == b"1"


# --- ClientWatch


async def test_watching_a_client_that_stays_changes_nothing() -> None:
    async with ClientWatch(cast(Any, Client().receive)):
        await asyncio.sleep(0)
    assert not _current().cancelling()


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_leaving_ends_the_body_and_nothing_after_it() -> None:
    client = Client()
    reached = False
    async with ClientWatch(cast(Any, client.receive)):
        client.leave()
        await asyncio.Event().wait()
        reached = True
    assert not reached
    assert not _current().cancelling()
    await asyncio.sleep(0)  # a cancellation left behind would come here


async def test_bodies_of_the_request_are_passed_over() -> None:
    messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async with ClientWatch(receive):
        await asyncio.Event().wait()
    assert messages == []


async def test_an_error_of_the_body_passes() -> None:
    with pytest.raises(KeyError):
        async with ClientWatch(cast(Any, Client().receive)):
            raise KeyError


async def test_a_cancellation_from_elsewhere_is_not_swallowed() -> None:
    """Not even when the client leaves in the same moment."""
    for leaves in (False, True):
        client = Client()

        async def body(client: Client = client) -> None:
            async with ClientWatch(cast(Any, client.receive)):
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await asyncio.sleep(0.01)
        task.cancel()
        if leaves:
            client.leave()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- frames


def _frames(generation: PaperGeneration, choices: int = 1) -> FrameSource:
    return FrameSource(cast(Generation, generation), ChatChunkEncoder(HEAD, choices=choices))


async def test_each_choice_is_opened_and_ended_on_its_own() -> None:
    frames = _frames(PaperGeneration(prompts=2), choices=2)
    assert [json.loads(chunk)["choices"][0]["index"] for chunk in frames.opening()] == [0, 1]
    chunks = frames.of([Piece(1, "x", FinishReason.STOP), Piece(0, ""), Piece(0, "y")])
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [(c["index"], c["delta"].get("content"), c["finish_reason"]) for c in choices] == [
        (1, "x", None),
        (1, None, "stop"),
        (0, "y", None),
    ]
    assert frames.closing() == []


def test_the_framing_of_events() -> None:
    assert sse([]) == b""
    assert sse([b"{1}", b"{2}"]) == b"data: {1}\n\ndata: {2}\n\n"
    assert PING == b": ping\n\n"


async def test_in_time() -> None:
    async def fails() -> None:
        raise OSError

    sending: list[tuple[Callable[[], Awaitable[Any]], type[Exception]]] = [
        (lambda: asyncio.sleep(60), SlowReader),
        (fails, OSError),
    ]
    for send, expected in sending:
        with pytest.raises(expected):
            await in_time(TimeLimit()(0.01), send())
    await in_time(TimeLimit()(60), asyncio.sleep(0))
    assert issubclass(SlowReader, APIError)
