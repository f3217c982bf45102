"""What a grammar has to know of a tokenizer: a file that the gateway writes and engines read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(slots=True, frozen=True)
class Vocabulary:
    """`tokens[i]` is what token i adds to a text. Of a special token, which adds nothing, it is the token's name.

    `tokenizer` is a tokenizer.json, by which a text that is forced becomes the tokens that the model would write.
    """

    tokens: list[bytes]
    special: list[int]
    tokenizer: str

    def write(self, path: Path) -> None:
        """Whole or not at all: several gateways may write the same file, while an engine reads it."""
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.msgpack.encode(self))
        new.replace(path)


def read(path: str | Path) -> Vocabulary:
    """Raises OSError or msgspec.MsgspecError."""
    return msgspec.msgpack.decode(Path(path).read_bytes(), type=Vocabulary)
