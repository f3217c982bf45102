"""What the routes declare of themselves, as one OpenAPI 3.1 document.

FastAPI can't make it: our routes read bodies and queries themselves, after authentication, and write answers as bytes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.access import key_for
from server.store.records import KeyKind
from server.wire.answers import JSON, Answered, AnswerType, answered_by
from server.wire.takes import Taken, taken_by

REF = "#/components/schemas/"
FORM, EVENT_STREAM = "multipart/form-data", "text/event-stream"
WITH_A_BODY = {"POST", "PUT", "PATCH"}
DESCRIPTION = "/v1/chat/completions also speaks WebSocket, which this format has no words for: see the README."


@dataclass(slots=True, frozen=True)
class Declared:
    route: APIRoute
    taken: Taken
    answered: Answered

    @property
    def has_body(self) -> bool:
        return not WITH_A_BODY.isdisjoint(self.route.methods or ())

    def types(self) -> Iterable[AnswerType]:
        body = self.taken.model if self.has_body else None
        return (*((body,) if body else ()), *self.answered.types, self.answered.error)


def declared(route: APIRoute) -> Declared:
    answered = answered_by(route.endpoint)
    if not answered.types and route.response_model is not None:
        answered = dataclasses.replace(answered, types=(route.response_model,))
    return Declared(route, taken_by(route.endpoint) or Taken(None), answered)


def document(routes: Iterable[APIRoute], version: str) -> dict[str, Any]:
    declarations = sorted(map(declared, routes), key=lambda declaration: declaration.route.path)
    schemas = Schemas(kind for declaration in declarations for kind in declaration.types())
    paths: dict[str, dict[str, Any]] = {}
    for declaration in declarations:
        path = re.sub(r":\w+}", "}", declaration.route.path)
        for method in sorted(declaration.route.methods or ()):
            paths.setdefault(path, {})[method.lower()] = _operation(declaration, method, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": _SECURITY},
    }


_SECURITY = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "adminKey": {"type": "http", "scheme": "bearer", "description": "An admin key."},
}


class Schemas:
    """Named schemas of all types: pydantic's for what is read, msgspec's for what is written."""

    def __init__(self, types: Iterable[AnswerType]) -> None:
        known = list(dict.fromkeys(types))
        structs = [kind for kind in known if issubclass(kind, msgspec.Struct)]
        models = [kind for kind in known if issubclass(kind, BaseModel)]
        self._of, self.components = _of_models(models)
        written, components = msgspec.json.schema_components(structs, ref_template=REF + "{name}")
        written, components = _apart(written, components, self.components)
        self._of |= dict(zip(structs, written, strict=True))
        self.components |= components

    def of(self, kinds: tuple[AnswerType, ...]) -> dict[str, Any]:
        """Any of them; without any, anything."""
        if not kinds:
            return {}
        found = [self._of[kind] for kind in kinds]
        return found[0] if len(found) == 1 else {"anyOf": found}


def _of_models(models: list[type[BaseModel]]) -> tuple[dict[AnswerType, dict[str, Any]], dict[str, Any]]:
    wanted: list[Any] = [(model, "validation") for model in models]
    refs, definitions = models_json_schema(wanted, ref_template=REF + "{model}")
    return {model: refs[model, "validation"] for model in models}, definitions.get("$defs", {})


def _apart(written: Any, components: Any, taken: Mapping[str, Any]) -> Any:
    """Of two types with one name, the one that is written is called otherwise."""
    text = msgspec.json.encode([written, components]).decode()
    for name in components.keys() & taken.keys():
        text = text.replace(f'"{REF}{name}"', f'"{REF}{name}Answer"').replace(f'"{name}":', f'"{name}Answer":')
    return msgspec.json.decode(text)


def _operation(declaration: Declared, method: str, schemas: Schemas) -> dict[str, Any]:
    route, taken = declaration.route, declaration.taken
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', route.path).rstrip('_')}",
        "tags": [route.endpoint.__module__.rsplit(".", 1)[1]],
        "security": _security(route.path),
        "parameters": _path_parameters(route),
        "responses": _responses(declaration.answered, schemas, has_body=method != "HEAD"),
    }
    if taken.model is not None and declaration.has_body:
        operation["requestBody"] = _body(taken, taken.model, schemas)
    elif taken.model is not None:
        operation["parameters"] += _query_parameters(taken.model)
    if route.endpoint.__doc__:
        operation["description"] = route.endpoint.__doc__
    return operation


def _body(taken: Taken, model: type[BaseModel], schemas: Schemas) -> dict[str, Any]:
    schema = schemas.of((model,))
    if not taken.others:
        return {"required": not taken.optional, "content": {JSON: {"schema": schema}}}
    form = schemas.components[schema["$ref"].removeprefix(REF)]
    files = {name: {"type": "string", "format": "binary"} for name in taken.others}
    whole = form | {"properties": form["properties"] | files, "required": [*form.get("required", ()), *files]}
    return {"required": True, "content": {FORM: {"schema": whole}}}


def _security(path: str) -> list[dict[str, list[str]]]:
    match key_for(path):
        case None:
            return []
        case KeyKind.ADMIN:
            return [{"adminKey": []}]
        case _:
            return [{"apiKey": []}]


def _path_parameters(route: APIRoute) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in route.param_convertors]


def _query_parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    """Each stands once, as `read_query` has it: lists are written with commas."""
    schema = query.model_json_schema()
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _resolved(value, schema)}
        for name, value in schema.get("properties", {}).items()
    ]


def _resolved(value: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without references, which nothing in a query needs."""
    if "$ref" in value:
        return _resolved(schema["$defs"][value["$ref"].rsplit("/", 1)[1]], schema)
    if "anyOf" in value:
        return dict(value) | {"anyOf": [_resolved(option, schema) for option in value["anyOf"]]}
    return dict(value)


def _responses(answered: Answered, schemas: Schemas, *, has_body: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer."}
    error: dict[str, Any] = {"description": "An error."}
    if has_body:
        answer["content"] = {answered.media: {"schema": schemas.of(answered.types)}}
        error["content"] = {JSON: {"schema": schemas.of((answered.error,))}}
    if answered.streams:
        answer["content"][EVENT_STREAM] = {"schema": {"type": "string"}}
    return {str(status): answer for status in answered.statuses} | {"default": error}
