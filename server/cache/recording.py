"""A finished answer as the cache keeps it: what became known of it, not the bytes of any wire format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from engines.types import FinishReason, Usage
from server.choice import Piece, compact

ENDINGS = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)
"""Of answers that are recorded: those that are complete."""


@dataclass(slots=True, frozen=True)
class Recording:
    """One piece a choice, and the tokens that it took."""

    pieces: list[Piece]
    usage: Usage

    @property
    def is_replayable(self) -> bool:
        return all(piece.finish_reason in ENDINGS for piece in self.pieces)


def record(pieces: Sequence[Piece], usage: Usage) -> Recording:
    """Of all pieces of a finished answer."""
    return Recording([msgspec.structs.replace(piece, is_anew=False) for piece in compact(pieces)], usage)


def replayed(usage: Usage) -> Usage:
    """What it is to a request that computes none of it: the whole prompt was there already."""
    return replace(usage, cached_tokens=usage.prompt_tokens)


encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Recording)


def decode(data: bytes) -> Recording | None:
    """None for what is no recording of ours."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError:
        return None
