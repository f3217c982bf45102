"""The answer to a request for vectors: one JSON object, when all of them are there."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engines.types import Usage
from server.generation import Generation
from server.off_loop import off_loop_if
from server.streaming import ClientWatch, with_headers
from server.wire.common import ResponseHead

LONG_ANSWER_BYTES = 64 * 1024  # of vectors; longer ones are rendered off the event loop

Render = Callable[[ResponseHead, list[bytes], Usage], bytes]


class VectorAnswer(Response):
    """Runs the generation itself, as every response of ours does (`server.streaming`)."""

    def __init__(self, generation: Generation, render: Render) -> None:
        super().__init__()
        self._generation = generation
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with ClientWatch(receive):
            async with self._generation as generation:
                vectors = await with_headers(generation, collect(generation))
            head, usage = generation.job.head, generation.usage
            size = sum(map(len, vectors))
            body = await off_loop_if(size > LONG_ANSWER_BYTES, lambda: self._render(head, vectors, usage))
            headers = {"content-type": "application/json"} | generation.headers
            await Response(body, headers=headers)(scope, receive, send)


async def collect(generation: Generation) -> list[bytes]:
    """In the order of the texts."""
    found: dict[int, bytes] = {}
    while not generation.is_done:
        for piece in await generation.next():
            if piece.is_anew:
                found.clear()
            found |= piece.vectors
    return [found[index] for index in range(len(found))]
