"""A response in one piece."""

from __future__ import annotations

from server.generation import Generation
from server.responses.service import Prepared
from server.streaming import JSONAnswer
from server.wire.common import encode
from server.wire.response_body import ResponseBody


class WholeResponse(JSONAnswer[ResponseBody]):
    """Stored, where it is, before it is sent: a client's next request may go on with it at any gateway."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared.generation)
        self._prepared = prepared

    async def gather(self, generation: Generation) -> ResponseBody:
        builder = self._prepared.builder
        while not generation.is_done:
            builder.add(await generation.next())
        builder.finish(generation.usage)
        return builder.body

    async def body_of(self, generation: Generation, gathered: ResponseBody) -> bytes:
        if (recorder := self._prepared.recorder) is not None:
            recorder.add((), gathered)
            await recorder.written()
        return encode(gathered)
