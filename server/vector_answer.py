"""The answer to a request for vectors: one JSON object, when all of them are there."""

from __future__ import annotations

from collections.abc import Callable

from engines.types import Usage
from server.generation import Generation
from server.off_loop import off_loop_if
from server.streaming import JSONAnswer
from server.wire.common import ResponseHead

LONG_ANSWER_BYTES = 64 * 1024  # of vectors; longer ones are rendered off the event loop

Render = Callable[[ResponseHead, list[bytes], Usage], bytes]


class VectorAnswer(JSONAnswer[list[bytes]]):
    """The vectors of all texts, or what is made of them."""

    def __init__(self, generation: Generation, render: Render) -> None:
        super().__init__(generation)
        self._render = render

    async def gather(self, generation: Generation) -> list[bytes]:
        return await collect(generation)

    async def body_of(self, generation: Generation, gathered: list[bytes]) -> bytes:
        head, usage = generation.job.head, generation.usage
        is_long = sum(map(len, gathered)) > LONG_ANSWER_BYTES
        return await off_loop_if(is_long, lambda: self._render(head, gathered, usage))


async def collect(generation: Generation) -> list[bytes]:
    """In the order of the texts."""
    found: dict[int, bytes] = {}
    while not generation.is_done:
        for piece in await generation.next():
            if piece.is_anew:
                found.clear()
            found |= piece.vectors
    return [found[index] for index in range(len(found))]
