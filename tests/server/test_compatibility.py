"""docs/compatibility.md says what the code does; nothing is left out of it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, ClassVar, Literal

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel

from docs.compatibility import PAGE, page
from server.app import ROUTERS
from server.compatibility import Field, Status, Undeclared, endpoints, fields
from server.wire.common import RequestModel
from server.wire.takes import taken_by, takes

ROUTES = [route for router in ROUTERS for route in router.routes]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/compatibility.md is out of date: run `make docs`"


def _readers(endpoint: Any) -> list[str]:
    """The models, as it writes them, that a route reads its request by."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(endpoint)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    reading = [call for call in calls if call.func.id in ("read", "_read", "read_query")]  # type: ignore[attr-defined]
    return [ast.unparse(call.args[1]) for call in reading]


@pytest.mark.parametrize("route", [r for r in ROUTES if isinstance(r, APIRoute)], ids=lambda route: route.path)
def test_a_route_takes_what_it_reads(route: APIRoute) -> None:
    taken = taken_by(route.endpoint)
    for written in _readers(route.endpoint):
        said = f"{route.path} reads {written}: put @takes({written}) over it"
        assert taken is not None, said
        assert taken.model is eval(written, route.endpoint.__globals__), said  # noqa: S307


def test_a_route_that_says_nothing_is_named() -> None:
    router = APIRouter()

    @router.post("/v1/new")
    async def create() -> None: ...

    with pytest.raises(Undeclared, match=r"POST /v1/new .*@takes\(MODEL\)"):
        endpoints(router.routes)


def test_the_paths_of_one_request_stand_together() -> None:
    router = APIRouter()

    @router.post("/x")
    @router.post("/v1/x")
    @takes(None, "file")
    async def create() -> None: ...

    (found,) = endpoints(router.routes)
    assert (found.methods, found.paths, found.fields) == (
        ("POST",), ("/v1/x", "/x"), (Field("file", Status.HONOURED),),
    )  # fmt: skip


class Inner(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"hint"})

    type: Literal["inner"] | None = None
    hint: str | None = None
    plain: str | None = None
    only: Literal[False] | None = None
    used: int


class Other(RequestModel):
    type: Literal["other"]


class Outer(RequestModel):
    NEUTRAL: ClassVar[Any] = {"n": (1,)}
    WHERE: ClassVar[Any] = {"m": "it is Tuesday"}

    n: int | None = None
    m: int
    inner: list[Inner | Other] | Inner | None = None
    never: None = None


def test_fields() -> None:
    assert list(fields(Outer)) == [
        Field("n", Status.REFUSED, neutral=(1,)),
        Field("m", Status.HONOURED, "it is Tuesday"),
        Field("inner", Status.HONOURED),
        Field("inner[].type", Status.HONOURED, kinds=("inner", "other")),
        Field("inner[].hint", Status.NO_EFFECT),
        Field("inner[].only", Status.REFUSED, neutral=(False,)),
        Field("inner.type", Status.HONOURED, kinds=("inner",)),
        Field("inner.hint", Status.NO_EFFECT),
        Field("inner.only", Status.REFUSED, neutral=(False,)),
        Field("never", Status.REFUSED),
    ]


class Lax(BaseModel):
    pass


class Vague(RequestModel):
    anything: Any = None


class Mistaken(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"gone"})


def test_what_nobody_can_say_is_no_entry() -> None:
    with pytest.raises(Undeclared, match="Lax ignores"):
        list(fields(Lax))
    with pytest.raises(Undeclared, match=r"Vague\.anything"):
        list(fields(Vague))
    with pytest.raises(Undeclared, match=r"Mistaken.*gone"):
        list(fields(Mistaken))
