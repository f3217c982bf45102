"""JSON schemas that clients send, on their way into a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest

MAX_SCHEMA = 256 * 1024  # characters, as JSON
# Python's names for types, which function schemas made from signatures have.
_TYPES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "str": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "none": "null",
    "NoneType": "null",
}
# How JSON is written: no blanks but a space or a line feed and an indent, as engines/grammars/compiler.py has it.
WRITING = {"whitespace_pattern": "( |\\n {0,20})?"}
_OPTIONS = "x-guidance"  # the compiler's own: with them a schema could lift what it asks for
_ANY = frozenset({"any", "Any"})
_SCHEMA = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


class ForbiddenKeyword(ValueError):
    """The message is for the client."""


def as_json(schema: Any, param: str) -> str:
    """A schema as a grammar's text, its types by JSON schema's names. Raises InvalidRequest, which blames `param`."""
    try:
        text = json.dumps(standard(schema), ensure_ascii=False)
    except RecursionError:
        raise InvalidRequest(f"Invalid value for '{param}': the schema is nested too deeply.", param=param) from None
    except ForbiddenKeyword as error:
        raise InvalidRequest(f"Invalid value for '{param}': {error}", param=param) from None
    if len(text) > MAX_SCHEMA:
        message = f"Invalid value for '{param}': a schema has at most {MAX_SCHEMA} characters."
        raise InvalidRequest(message, param=param)
    return text


def for_lark(schema: Any, param: str, *, strict: bool | None) -> str:
    """The same inside a Lark grammar. Without `strict`, keywords that no grammar can hold to are left to the model."""
    text = as_json(schema, param)
    if text in ("true", "false"):
        return text
    return json.dumps({**json.loads(text), "x-guidance": WRITING if strict else {**WRITING, "lenient": True}})


def standard(schema: Any) -> Any:
    """The schema with JSON schema's names for types, at every place that is a schema and not a value.

    Raises ForbiddenKeyword."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: new for key, value in schema.items() if (new := _keyword(key, value)) is not None or value is None}


def _keyword(key: str, value: Any) -> Any:
    if key == _OPTIONS:
        raise ForbiddenKeyword(f"a schema can't have the keyword '{_OPTIONS}'.")
    if key == "type":
        return _type(value)
    if key in _LIST and isinstance(value, list):
        return [standard(item) for item in value]
    if key in _MAP and isinstance(value, Mapping):
        return {name: standard(item) for name, item in value.items()}
    return standard(value) if key in _SCHEMA else value


def _type(value: Any) -> Any:
    """None for a type that allows everything: the keyword is left out."""
    if isinstance(value, list):
        return [_TYPES.get(item, item) if isinstance(item, str) else item for item in value]
    if isinstance(value, str):
        return None if value in _ANY else _TYPES.get(value, value)
    return value
