"""Whether a deployment is meant to serve, and what a request gets while it is not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.errors import Overloaded

STARTING_RETRY_MS = 2000


class Phase(StrEnum):
    READY = "ready"  # it serves; whether its engines are there is another question
    LOADING = "loading"
    UNLOADING = "unloading"  # what runs may finish
    UNLOADED = "unloaded"
    FAILED = "failed"  # it did not load


class Standing(StrEnum):
    """How a deployment stands, for operators."""

    READY = "ready"
    AWAY = "away"  # it is meant to serve, and none of its engines is there
    LOADING = "loading"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(slots=True)
class ModelState:
    """`reason`: one line for operators, why it is not as it should be."""

    phase: Phase = Phase.READY
    reason: str = ""

    @property
    def is_served(self) -> bool:
        return self.phase is Phase.READY


def starting(deployment: str) -> Overloaded:
    message = f"The model {deployment} is starting."
    return Overloaded(message, code="engine_starting", retry_after_ms=STARTING_RETRY_MS)


def unloaded(deployment: str) -> Overloaded:
    """Only an operator brings it back: no client should try again by itself."""
    message = f"The model {deployment} is unloaded."
    return Overloaded(message, code="model_unloaded", headers={"x-should-retry": "false"})
