"""What a gateway and a worker say to each other: length-prefixed msgpack over a Unix socket, or through a Triton.

A frame is 4 bytes, big endian, the length of what follows, and one message.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from dataclasses import dataclass, field, is_dataclass
from enum import Enum, StrEnum
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from batching.scheduler import SchedulerConfig
from batching.stats import WorkerStats
from engines.hosting import SessionAction, Welcome
from engines.types import EngineConfig, EngineInfo, GenerationRequest, OutputDelta

MAX_FRAME_BYTES = 256 * 2**20
T = TypeVar("T")
_LENGTH = struct.Struct(">I")


@dataclass(slots=True, frozen=True)
class WorkerConfig:
    """What a worker is started with, as one line of JSON on its standard input. `restarts`: how often it was before.

    `silence` is for those who listen to it.
    """

    socket_path: str
    engine: EngineConfig
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    log_level: str = "info"
    restarts: int = 0
    silence: float = 10.0  # seconds without a sign of life, after which it hangs
    step_timeout: float = 120.0  # seconds


@dataclass(slots=True, frozen=True)
class Started:
    """A child's one line on its standard output: it serves, or `error` says in one line why it can't.

    `info` is a worker's.
    """

    info: EngineInfo | None = None
    error: str = ""


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    request: GenerationRequest


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    request_id: str


class Action(StrEnum):
    """What a worker is told on the way to its end; each is answered when it is done."""

    CHECK = "check"  # could the engine be unloaded? Changes nothing
    DRAIN = "drain"  # refuse what comes from now on; done when nothing is left
    CUT = "cut"  # end what is left in errors; done when nothing is left
    UNLOAD = "unload"  # have the engine unloaded where another server runs it
    RESUME = "resume"  # it was not to be: take requests again


class Control(msgspec.Struct, tag="control", array_like=True, frozen=True):
    """`text` is what clients are told whose requests are refused, or cut."""

    number: int
    action: Action
    text: str = ""


class Controlled(msgspec.Struct, tag="controlled", array_like=True, frozen=True):
    """Control `number` is done, or `error` says in one line why not."""

    number: int
    error: str = ""


class Deltas(msgspec.Struct, tag="deltas", array_like=True, frozen=True):
    """Everything that one step added to this gateway's requests."""

    deltas: list[OutputDelta]


class Stats(msgspec.Struct, tag="stats", array_like=True, frozen=True):
    stats: WorkerStats


ToWorker = Submit | Abort | Control
FromWorker = Deltas | Stats | Controlled

_encoder = msgspec.msgpack.Encoder()
to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def name_of_protocol() -> str:
    """Of everything that is said in a session: it changes with any field of a message, and of what is in it."""
    found: dict[str, Any] = {}
    kinds: list[Any] = [Submit, Abort, Deltas, Stats, Welcome, SessionAction]
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, type) and issubclass(kind, Enum):
            found[kind.__name__] = [(member.name, member.value) for member in kind]
        elif (is_dataclass(kind) or hasattr(kind, "__struct_fields__")) and kind.__name__ not in found:
            found[kind.__name__] = kind.__annotations__
            kinds += get_type_hints(kind).values()
        else:  # a list of such, or one of several
            kinds += get_args(kind)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12]


# Both ends of a socket are one installation; those of a session through another server are two.
PROTOCOL = name_of_protocol()


def frame(message: Any) -> bytes:
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class ProtocolError(Exception):
    """The peer sent what is no message of ours."""


async def read_message(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """The next message.

    Raises asyncio.IncompleteReadError at the end, ConnectionError on a broken connection, ProtocolError.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes")
    payload = await reader.readexactly(length)
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(str(error)) from error


def messages_in(frames: bytes, decoder: msgspec.msgpack.Decoder[T]) -> list[T]:
    """Of a whole number of frames. Raises ProtocolError."""
    messages, start = [], 0
    try:
        while start < len(frames):
            (length,) = _LENGTH.unpack_from(frames, start)
            start += _LENGTH.size + length
            messages.append(decoder.decode(memoryview(frames)[start - length : start]))
    except (struct.error, msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(str(error)) from error
    if start > len(frames):
        raise ProtocolError("half a frame")
    return messages
