"""What a worker inside another server and its relay here agree on, besides the messages themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from engines.types import EngineInfo


@dataclass(slots=True, frozen=True)
class Welcome:
    """What a worker inside another server says of itself. `protocol` names the messages that it knows."""

    protocol: str
    info: EngineInfo


class SessionAction(IntEnum):
    """What a request to a worker inside another server asks for."""

    ASK = 0  # a Welcome: nothing else
    OPEN = 1  # a session: this request is answered for as long as it lasts
    SAY = 2  # these frames, in a session; without any: we are still here
    CLOSE = 3  # the session


HOSTED_TENSORS = {"action": "UINT8", "session": "UINT64", "frames": "UINT8"}
"""Inputs of a worker inside Triton. Bytes are UINT8: Triton's string tensors cost a copy, and break on numpy 2."""
HOSTED_FAILURE = "penstock: the engine has failed"
"""How such a worker tells that nothing but another process can help it."""
