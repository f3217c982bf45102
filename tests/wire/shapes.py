"""Values of the request schemas in `/openapi.json`, drawn at random: for a fuzzer to change, and for canaries."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from server.app import create_document

Schema = Mapping[str, Any]

MODELS = ("echo", "echo@1", "vectors", "pairs")
SMALL = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "best_of")
MAX_DEPTH = 8
DOCUMENT = create_document()


def body_schema(operation: Schema) -> Schema | None:
    """None for one without a body, and for a form."""
    schema: Schema | None = (
        operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    )
    return schema


def operations() -> dict[str, Schema]:
    """All of them, by method and path."""
    paths: dict[str, dict[str, Schema]] = DOCUMENT["paths"]
    return {f"{method.upper()} {path}": item for path, items in paths.items() for method, item in items.items()}


class Shaper:
    """`share` of the optional fields are there. `seen`: the names of all fields that were given a value."""

    def __init__(self, rng: random.Random, text: Callable[[], str], share: float = 0.3) -> None:
        self._rng, self._text, self._share = rng, text, share
        self.seen: set[str] = set()

    def value(self, schema: Schema, name: str = "", depth: int = 0) -> Any:
        if "$ref" in schema:
            schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        if name == "model":
            return self._rng.choice(MODELS)
        if name in SMALL:
            return self._rng.randint(0, 16)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(schema["enum"])
        if branches := schema.get("anyOf") or schema.get("oneOf"):
            return self.value(branches[-1] if depth > MAX_DEPTH else self._rng.choice(branches), name, depth + 1)
        return self._of_type(schema, name, depth)

    def _of_type(self, schema: Schema, name: str, depth: int) -> Any:
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "string" | None:
                return "name-1" if "pattern" in schema else self._text()
            case "integer":
                return self._rng.randint(schema.get("minimum", 0), schema.get("maximum", 20))
            case "number":
                return self._rng.choice([0, 0.5, 1, schema.get("maximum", 2)])
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
            case kind:
                raise TypeError(f"no value of the type {kind}")

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        fewest = schema.get("minItems", 0)
        size = fewest if depth > MAX_DEPTH else max(fewest, self._rng.randint(0, 2))
        return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(size)]

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        needed, made = schema.get("required", ()), {}
        for name, inner in schema.get("properties", {}).items():
            if name in needed or (depth <= MAX_DEPTH and self._rng.random() < self._share):
                self.seen.add(name)
                made[name] = self.value(inner, name, depth + 1)
        if isinstance(more := schema.get("additionalProperties"), Mapping) or (more is True and not made):
            made[self._text()[:60]] = self.value(more if isinstance(more, Mapping) else {}, "", depth + 1)
        return made
