"""What a route's request holds, declared beside the route: `server.compatibility` tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_ATTRIBUTE = "_takes"


@dataclass(slots=True, frozen=True)
class Taken:
    """`model` is of the body, the form, the query or the frame; None: there is none of them. `others` are parts of a
    form that no model holds, such as a file. `optional`: no body is the same as an empty object."""

    model: type[BaseModel] | None
    others: tuple[str, ...] = ()
    optional: bool = False


def takes(model: type[BaseModel] | None, *others: str, optional: bool = False) -> Callable[[Endpoint], Endpoint]:
    """Stands below the route's own decorator."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, Taken(model, others, optional))
        return endpoint

    return declare


def taken_by(endpoint: Callable[..., Any]) -> Taken | None:
    """None where nothing is declared."""
    taken: Taken | None = getattr(endpoint, _ATTRIBUTE, None)
    return taken
