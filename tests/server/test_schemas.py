from __future__ import annotations

import json
from typing import Any

import pytest

from server.errors import InvalidRequest
from server.schemas import MAX_SCHEMA, as_json, standard


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "dict"}, {"type": "object"}),
        ({"type": "any", "title": "t"}, {"title": "t"}),
        ({"type": ["float", "null"]}, {"type": ["number", "null"]}),
        ({"items": {"type": "tuple"}}, {"items": {"type": "array"}}),
        ({"anyOf": [{"type": "str"}, True]}, {"anyOf": [{"type": "string"}, True]}),
        ({"$defs": {"type": {"type": "bool"}}}, {"$defs": {"type": {"type": "boolean"}}}),
        ({"default": None, "const": {"type": "dict"}}, {"default": None, "const": {"type": "dict"}}),
        ({"properties": {"type": {"type": "any"}}}, {"properties": {"type": {}}}),
        ({"type": "thing"}, {"type": "thing"}),
        (True, True),
    ],
)  # fmt: skip
def test_types_have_the_names_of_json_schema(given: Any, expected: Any) -> None:
    assert standard(given) == expected
    assert json.loads(as_json(given, "p")) == expected


def test_a_schema_of_any_depth_is_answered() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="nested") as caught:
        as_json(deep, "tools.0")
    assert caught.value.param == "tools.0"


def test_a_schema_has_a_size() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        as_json({"enum": ["x" * MAX_SCHEMA]}, "response_format")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
        {"properties": {"a": {"anyOf": [{"x-guidance": {}}]}}},
    ],
)
def test_a_schema_cannot_set_how_it_is_compiled(schema: Any) -> None:
    with pytest.raises(InvalidRequest, match="'x-guidance'") as caught:
        as_json(schema, "response_format")
    assert caught.value.param == "response_format"
    named = {"properties": {"x-guidance": {"const": {"x-guidance": 1}}}}  # a property's name, and a value
    assert standard(named) == named
