"""The events of a streamed message: blocks one behind another, each of them closed before the next one opens."""

from __future__ import annotations

import hashlib
from typing import Any

from engines.types import Usage
from server.choice import Piece
from server.errors import APIError
from server.generation import Generation
from server.streaming import Events
from server.text.answer import CallPiece
from server.wire.common import encode
from server.wire.message_answer import (
    BlockBody,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageBody,
    MessageDelta,
    MessageEnd,
    MessageStart,
    MessageStop,
    Ping,
    SignatureDelta,
    TextBody,
    TextDelta,
    ThinkingBody,
    ThinkingDelta,
    ToolUseBody,
    UsageBody,
    UsageDelta,
    event,
    named_event,
    signature,
    stop_reason,
)
from server.wire.message_errors import envelope


class MessageEvents(Events):
    """`hides_thinking`: a block of thoughts has its signature alone."""

    ping = event(Ping())

    def __init__(self, generation: Generation, *, hides_thinking: bool = False) -> None:
        self._generation = generation
        self._hides_thinking = hides_thinking
        self._open: BlockBody | None = None
        self._index = -1  # of the block that was opened last
        self._thoughts: Any = hashlib.sha256()
        self._end: MessageEnd | None = None

    def opening(self) -> bytes:
        job, usage = self._generation.job, self._generation.usage
        if not usage.prompt_tokens:  # no token came yet, but the prompt is known
            usage = Usage(prompt_tokens=len(job.prompts[0].token_ids))
        head = job.head
        begun = MessageBody(
            id=head.id, model=head.model, content=(), stop_reason=None, stop_sequence=None, usage=UsageBody.of(usage)
        )
        return event(MessageStart(begun))

    def of(self, pieces: list[Piece]) -> bytes:
        return b"".join(self._of(piece) for piece in pieces)

    def closing(self) -> bytes:
        assert self._end is not None
        return (
            self._close() + event(MessageDelta(self._end, UsageDelta.of(self._generation.usage))) + event(MessageStop())
        )

    def failure(self, error: APIError) -> bytes:
        return named_event("error", encode(envelope(error, self._generation.job.caller.request_id)))

    def _of(self, piece: Piece) -> bytes:
        """What goes on with the open call comes before its words, which stand behind that call."""
        num_more = next((i for i, call in enumerate(piece.calls) if call.id is not None), len(piece.calls))
        events = b"".join(map(self._call, piece.calls[:num_more]))
        events += self._think(piece.reasoning) if piece.reasoning else b""
        events += self._say(piece.text) if piece.text else b""
        events += b"".join(map(self._call, piece.calls[num_more:]))
        if piece.finish_reason is not None:
            self._end = MessageEnd(stop_reason(piece.finish_reason, piece.stop), piece.stop)
        return events

    def _think(self, thoughts: str) -> bytes:
        begun = b"" if isinstance(self._open, ThinkingBody) else self._start(ThinkingBody("", ""))
        self._thoughts.update(thoughts.encode())
        return begun if self._hides_thinking else begun + event(BlockDelta(self._index, ThinkingDelta(thoughts)))

    def _say(self, text: str) -> bytes:
        begun = b"" if isinstance(self._open, TextBody) else self._start(TextBody(""))
        return begun + event(BlockDelta(self._index, TextDelta(text)))

    def _call(self, call: CallPiece) -> bytes:
        begun = b"" if call.id is None else self._start(ToolUseBody(call.id, call.name or "", {}))
        if not isinstance(self._open, ToolUseBody):
            return b""  # the end of a call that was broken off, and whose block is closed
        return begun + (event(BlockDelta(self._index, InputDelta(call.arguments))) if call.arguments else b"")

    def _start(self, block: BlockBody) -> bytes:
        closed = self._close()
        self._open = block
        self._index += 1
        return closed + event(BlockStart(self._index, block))

    def _close(self) -> bytes:
        closed, self._open = self._open, None
        if closed is None:
            return b""
        signed = b""
        if isinstance(closed, ThinkingBody):
            signed = event(BlockDelta(self._index, SignatureDelta(signature(self._thoughts))))
            self._thoughts = hashlib.sha256()
        return signed + event(BlockStop(self._index))
