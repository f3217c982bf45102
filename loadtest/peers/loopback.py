"""A bare asyncio server that answers every completion with `max_tokens` events at once: the floor under any gateway.

python -m loadtest.peers.loopback PORT
"""

import asyncio
import json
import sys

HEAD = "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = {"id": "cmpl-0000000000000000", "object": "text_completion", "created": 1_700_000_000, "model": "raw"}


def event(**choice: object) -> bytes:
    """In a frame of chunked transfer encoding."""
    return framed(b"data: " + json.dumps({**CHUNK, "choices": [{"index": 0, **choice}]}).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


TOKEN, LAST = event(text=" word", finish_reason=None), event(text="", finish_reason="length")
DONE, END = framed(b"data: [DONE]\n\n"), b"0\r\n\r\n"
MODELS = framed(b'{"object": "list", "data": [{"id": "raw", "object": "model"}]}')


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, until the client has had enough of it."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
            if head.startswith(b"GET"):
                writer.write(HEAD.format("application/json").encode() + MODELS + END)
            else:
                await _stream(writer, json.loads(body)["max_tokens"])
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _stream(writer: asyncio.StreamWriter, tokens: int) -> None:
    """A write a token, and a turn of the loop between them, as an engine's steps would come."""
    writer.write(HEAD.format("text/event-stream").encode())
    for _ in range(tokens):
        writer.write(TOKEN)
        await asyncio.sleep(0)
    writer.write(LAST + DONE + END)


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
