"""An OpenAI-compatible server that does nothing: what gateways of others are put before, and, driven by itself, the
floor of what a server written with asyncio can cost.

python -m loadtest.gateway.upstream --delay-ms 10

A token is a letter. Whole answers come at once; a stream has one chunk a token, all streams at every tick of the delay.
Its bytes are those of Penstock's answers. It says its port on the first line of its output.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, cast

import typer

from loadtest.gateway.raw_http import HEAD_END
from loadtest.options import standalone
from loadtest.runner import loop_factory

LETTERS = b"abcdefghijklmnopqrstuvwxyz"
IDENTITY = (
    b'"id":"chatcmpl-000000000000000000000000","created":1700000000,"model":"fake@1","system_fingerprint":"fp_000000"'
)
CHUNK = b'data: {"object":"chat.completion.chunk",' + IDENTITY + b',"choices":[%s]}\n\n'
CHOICE = b'{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


OPENING = _chunked(CHUNK % (CHOICE % (b'{"role":"assistant","content":"","refusal":null}', b"null")))
TOKENS = [_chunked(CHUNK % (CHOICE % (b'{"content":"%c"}' % letter, b"null"))) for letter in LETTERS]
CLOSING = _chunked(CHUNK % (CHOICE % (b"{}", b'"length"')) + b"data: [DONE]\n\n") + b"0\r\n\r\n"


def whole_answer(num_tokens: int) -> bytes:
    text = (LETTERS * (num_tokens // len(LETTERS) + 1))[:num_tokens].decode()
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    answer = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1_700_000_000, "model": "fake@1"}
    body = json.dumps(answer | {"choices": [choice], "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


class Streams:
    """All that are open: how many tokens each still gets."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._open: dict[asyncio.Transport, int] = {}

    def open(self, transport: asyncio.Transport, num_tokens: int) -> None:
        transport.write(STREAM_HEAD + OPENING)
        self._open[transport] = num_tokens

    def drop(self, transport: asyncio.Transport) -> None:
        self._open.pop(transport, None)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        tick = loop.time()
        while True:
            tick = max(tick + self._delay, loop.time())
            await asyncio.sleep(tick - loop.time())
            for transport, missing in list(self._open.items()):
                transport.write(TOKENS[missing % len(TOKENS)])
                self._open[transport] = missing - 1
                if missing == 1:
                    self.drop(transport)
                    transport.write(CLOSING)


class Upstream(asyncio.Protocol):
    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.drop(self._transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, found, body = self._unread.partition(HEAD_END)
        if found and len(body) >= _length(head):
            self._unread = b""
            self._answer(json.loads(body) if body else {})

    def _answer(self, request: dict[str, Any]) -> None:
        if not request:  # some ask for more than answers
            self._transport.write(NOT_FOUND)
        elif request.get("stream"):
            self._streams.open(self._transport, request["max_tokens"])
        else:
            self._transport.write(whole_answer(request["max_tokens"]))


def _length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next((int(value) for name, _, value in fields if name == b"content-length"), 0)


async def serve(delay: float) -> None:
    streams = Streams(delay)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(streams), "127.0.0.1", 0)
    typer.echo(server.sockets[0].getsockname()[1])
    await streams.run()


def main(delay_ms: Annotated[float, typer.Option(help="Between two tokens of a stream.")] = 10.0) -> None:
    """Answer until a signal ends it."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(delay_ms / 1000))


if __name__ == "__main__":
    standalone(main)
