"""What becomes of every field of every endpoint's request, read from the routes and from the models of their requests.

`docs/compatibility.py` makes a page of it. A field's model says it in one place: `wire.common.RequestModel`.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastapi.routing import APIRoute, APIWebSocketRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.routing import BaseRoute

from server.access import key_for
from server.store.records import KeyKind
from server.wire.common import RequestModel
from server.wire.sampling import ENGINE_HAS_IT, ENGINE_NEUTRAL, GenerationFields
from server.wire.takes import Taken, taken_by

WITH_A_BODY = frozenset({"POST", "PUT", "PATCH"})
WEBSOCKET = "WebSocket"


class Undeclared(Exception):
    """A route, or a field, of which nobody says what becomes of it. The message says what to do."""


class Status(StrEnum):
    HONOURED = "honoured"
    NO_EFFECT = "accepted, no effect"
    REFUSED = "refused"


@dataclass(slots=True, frozen=True)
class Field:
    """`where`: honoured under that condition, else refused by name. `neutral`: what of a refused one is accepted, as
    null is. `kinds`: all that a `type` may be. `path` is dotted, `[]` stands for each item of a list."""

    path: str
    status: Status
    where: str = ""
    neutral: tuple[object, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Honoured, and no more is to be said."""
        return self.status is Status.HONOURED and not (self.where or self.kinds)


@dataclass(slots=True, frozen=True)
class Endpoint:
    """Routes of one function: the same request on each of `paths`. `key` None: open."""

    methods: tuple[str, ...]
    paths: tuple[str, ...]
    key: KeyKind | None
    fields: tuple[Field, ...]


def endpoints(routes: Iterable[BaseRoute]) -> list[Endpoint]:
    """In the order of the routes. Raises Undeclared."""
    found: dict[tuple[tuple[str, ...], Any, KeyKind | None], list[str]] = {}
    for route in routes:
        if isinstance(route, APIRoute | APIWebSocketRoute):
            where = (_methods(route), route.endpoint, key_for(route.path))
            found.setdefault(where, []).append(route.path)
    return [
        Endpoint(methods, tuple(sorted(paths, key=_rank)), key, tuple(_taken(methods, paths[0], endpoint)))
        for (methods, endpoint, key), paths in found.items()
    ]


def _rank(path: str) -> tuple[bool, str]:
    return not path.startswith("/v1/"), path


def _methods(route: APIRoute | APIWebSocketRoute) -> tuple[str, ...]:
    return (WEBSOCKET,) if isinstance(route, APIWebSocketRoute) else tuple(sorted(route.methods or ()))


def _taken(methods: tuple[str, ...], path: str, endpoint: Any) -> Iterator[Field]:
    taken = taken_by(endpoint)
    if taken is None and (WITH_A_BODY | {WEBSOCKET}).isdisjoint(methods):
        taken = Taken(None)
    if taken is None:
        message = f"{', '.join(methods)} {path} does not say what it takes: put @takes(MODEL), of server.wire.takes, "
        raise Undeclared(message + f"over {endpoint.__module__}.{endpoint.__qualname__}, or @takes(None).")
    yield from (Field(name, Status.HONOURED) for name in taken.others)
    if taken.model is not None:
        yield from fields(taken.model)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """All of a request's, and those within them that are not simply honoured. Raises Undeclared."""
    if model.model_config.get("extra") != "forbid":
        raise Undeclared(f"{model.__name__} ignores fields that it does not know: make its extra 'forbid'.")
    if strangers := set(getattr(model, "NO_EFFECT", ())) - model.model_fields.keys():
        raise Undeclared(f"{model.__name__}.NO_EFFECT names what is no field of it: {', '.join(sorted(strangers))}.")
    for name, info in model.model_fields.items():
        path = prefix + (info.alias or name)
        field = _field(model, name, info, path)
        if not prefix or not field.is_plain:
            yield field
        if field.status is Status.HONOURED:
            yield from _inner(info.annotation, path)


def _field(model: type[BaseModel], name: str, info: FieldInfo, path: str) -> Field:
    neutral = _neutral(model)
    if name == "type" and (kinds := _literals(info.annotation)):
        return Field(path, Status.HONOURED, kinds=tuple(map(str, kinds)))
    if name in getattr(model, "NO_EFFECT", ()):
        return Field(path, Status.NO_EFFECT)
    if name in neutral:
        return Field(path, Status.REFUSED, neutral=neutral[name])
    if _allows_one_value(info.annotation) and not info.is_required():
        return Field(path, Status.REFUSED, neutral=_literals(info.annotation))
    if _is_anything(info.annotation):
        what = f"{model.__name__}.{name} is typed Any and in none of its model's tables"
        raise Undeclared(f"{what}: say what becomes of it in NEUTRAL, NO_EFFECT or WHERE.")
    return Field(path, Status.HONOURED, _where(model).get(name, ""))


def _neutral(model: type[BaseModel]) -> Mapping[str, tuple[object, ...]]:
    return model.NEUTRAL if issubclass(model, RequestModel) else {}


def _where(model: type[BaseModel]) -> dict[str, str]:
    by_engine = dict.fromkeys(ENGINE_NEUTRAL, ENGINE_HAS_IT) if issubclass(model, GenerationFields) else {}
    return by_engine | dict(getattr(model, "WHERE", {}))


def _inner(annotation: Any, path: str) -> Iterator[Field]:
    """Each path once, though several models of a union have it: of all their kinds."""
    found: dict[str, Field] = {}
    for model, suffix in _models(annotation):
        for field in fields(model, f"{path}{suffix}."):
            known = found.setdefault(field.path, field)
            found[field.path] = replace(known, kinds=tuple(dict.fromkeys(known.kinds + field.kinds)))
    yield from found.values()


def _models(annotation: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, suffix
        return
    if get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0], suffix)
        return
    inner = suffix + "[]" if get_origin(annotation) is list else suffix
    if get_origin(annotation) in (list, Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _models(argument, inner)


def _literals(annotation: Any) -> tuple[object, ...]:
    """The values that its Literals allow."""
    return tuple(
        value for option in _options(annotation) if get_origin(option) is Literal for value in get_args(option)
    )


def _allows_one_value(annotation: Any) -> bool:
    """Besides null, or null alone: to give it is to change nothing."""
    is_closed = all(option is types.NoneType or get_origin(option) is Literal for option in _options(annotation))
    return is_closed and len(_literals(annotation)) <= 1


def _options(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_anything(annotation: Any) -> bool:
    return Any in _options(annotation)
