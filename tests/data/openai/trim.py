"""Makes schemas.json beside it of OpenAI's openapi.json: python tests/data/openai/trim.py PATH/openapi.json

What answers are made of stays: no requests, no words, no defaults. `nullable` becomes a type that JSON Schema knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOTS = (
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateEmbeddingResponse",
    "CreateModerationResponse",
    "ListModelsResponse",
    "Model",
    "ErrorResponse",
    "Response",
    "ResponseStreamEvent",
    "ResponseItemList",
    "TokenCountsResource",
    "CompactResource",
    "OpenAIFile",
    "ListFilesResponse",
    "DeleteFileResponse",
    "Batch",
    "ListBatchesResponse",
)
WORDS = ("description", "example", "examples", "title", "deprecated", "default", "discriminator")
OF_ANOTHER_DRAFT = ("$recursiveAnchor", "$recursiveRef")  # of JSON Schema; in filters of file searches alone


def trimmed(node: Any, *, are_names: bool = False) -> Any:
    """`are_names`: the keys are the client's, as those of `properties` are, not the schema's."""
    if isinstance(node, list):
        return [trimmed(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: trimmed(value, are_names=key == "properties" and not are_names)
        for key, value in node.items()
        if are_names or not (key in WORDS + OF_ANOTHER_DRAFT or key.startswith("x-"))
    }
    if not are_names and kept.pop("nullable", False):
        return {"anyOf": [kept, {"type": "null"}]}
    return kept


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rsplit("/", 1)[1]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from references(item)


def closure(schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    waiting = list(ROOTS)
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name] = trimmed(schemas[name])
            waiting += references(found[name])
    return dict(sorted(found.items()))


def main() -> None:
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kept = closure(specification["components"]["schemas"])
    lines = [f"{json.dumps(name)}:{json.dumps(schema, separators=(',', ':'))}" for name, schema in kept.items()]
    Path(__file__).with_name("schemas.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
