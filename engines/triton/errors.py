"""What a call that failed says of a model: Triton has few codes and many words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

import grpc

from engines.hosting import HOSTED_FAILURE


class Fault(Enum):
    """What a failed call says of the model."""

    REQUEST = auto()  # nothing: this request was wrong
    BUSY = auto()  # its own queue is full
    MODEL = auto()  # it failed on this request
    DEAD = auto()  # its process is gone, or does not move
    AWAY = auto()  # it can't be reached


class TritonError(Exception):
    """A call failed. The message is the server's own: for the log, not for clients."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@contextlib.contextmanager
def errors_translated() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise translated(error) from None


def translated(error: Any) -> TritonError:
    message = f"{error.code().name}: {error.details()}"
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return TritonError(Fault.REQUEST, message)
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return TritonError(Fault.AWAY, message)
        case grpc.StatusCode.UNAVAILABLE:
            fault = fault_in(error.details() or "")
            return TritonError(Fault.AWAY if fault is Fault.MODEL else fault, message)
    return TritonError(fault_in(error.details() or ""), message)


# As Triton's own words have it.
_WORDS = {
    Fault.DEAD: ("stub process", HOSTED_FAILURE),
    Fault.BUSY: ("maximum queue size", "timeout expired"),
    Fault.AWAY: ("unknown model", "is not ready", "no available versions"),
    Fault.REQUEST: ("unexpected shape", "inference input", "input byte size", "batch-size must be"),
}


def fault_in(message: str) -> Fault:
    """Where no code tells. What is not Triton's own is the model's."""
    text = message.lower()
    return next((fault for fault, words in _WORDS.items() if any(part in text for part in words)), Fault.MODEL)
