"""The judge of the wire: what our servers answered, against OpenAI's SDK and OpenAI's own openapi.json.

Both in strict mode. The SDK's types know every key there is; the schemas know which must be there, though null.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from openai.pagination import SyncCursorPage
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.shapes import Route, Shape, route_of
from tests.tap import Answered

SCHEMAS = json.loads((Path(__file__).parent / "data" / "openai" / "schemas.json").read_text(encoding="utf-8"))
DONE = "[DONE]"
PING = {"type": "ping"}  # of Anthropic's streams; its SDK has no type for it
UNREAD = ("HEAD", "OPTIONS")  # no body; a refused preflight, whose body no browser shows to anybody
CLIENT_LEFT = 499

# Keys that OpenAI does not have, by the key or the path that they stand at.
EXTENSIONS = frozenset({
    "reasoning_content",  # of a message, of a delta: as DeepSeek and vLLM have it
    "request_id",  # of a WebSocket's frame: the client's own
    "blocklist",  # the category of terms that the operator blocks
    # The Open Responses specification has these three in a response.
    "store",
    "presence_penalty",
    "frequency_penalty",
    "stream_id",  # of an event on a WebSocket: the client's own
    "obfuscation",  # of a delta: the SDK's types leave it out
})  # fmt: skip
# Events that the SDK knows and the schemas don't yet.
UNKNOWN_TO_SCHEMAS = frozenset({"response.steer.failed"})
# Keys that the schemas require and the SDK's types leave out, by the event.
REQUIRED_BY_SCHEMAS = frozenset({("response.function_call_arguments.done", "name")})
# Of OpenAI's lists, which the SDK's type of a page leaves out.
OF_A_PAGE = frozenset({"object", "first_id", "last_id"})
# What OpenAI's own answers do against its schemas; clients count on it.
DEVIATIONS = frozenset({
    # Of every chunk of a stream but the last: its schema is that of the whole answer.
    ("CreateCompletionResponse", "finish_reason", "null"),
    ("CreateCompletionResponse", "usage", "null"),  # with include_usage, as the reference says in words
    # Of an echoed prompt's first token, before which there is nothing: its logprob, and the likeliest in its place.
    ("CreateCompletionResponse", "0", "null"),
    # Of a response that has not ended, or never began.
    ("Response", "usage", "null"),
    ("ResponseStreamEvent", "usage", "null"),
})  # fmt: skip


def complaints(answered: Answered) -> list[str]:
    """What is wrong with an answer, one line each."""
    where = f"{answered.method} {answered.path} {answered.status or ''}".strip()
    return [f"{where}: {complaint}" for complaint in _complaints(answered)]


def _complaints(answered: Answered) -> Iterator[str]:
    is_stream = answered.content_type.startswith("text/event-stream")
    if not answered.is_whole and not is_stream:
        return
    if answered.status >= 400:
        yield from _refusal(answered)
    elif (route := route_of(answered)) is None:
        return
    elif answered.method == "WS":
        yield from _part(route, answered.body)
    elif is_stream:
        yield from _stream(route, answered)
    elif answered.status == 200 and route.whole is not None:
        yield from judge(route.whole, answered.body)


def _refusal(answered: Answered) -> Iterator[str]:
    """Errors are JSON everywhere, and OpenAI's, but for those of Anthropic's endpoints."""
    if answered.method in UNREAD or answered.status == CLIENT_LEFT:
        return
    if not answered.content_type.startswith("application/json"):
        yield f"an error as {answered.content_type!r}"
    elif answered.path.startswith("/v1/messages") or answered.is_to_anthropic:
        yield from _anthropic_error(answered.body)
    else:
        yield from error_envelope(answered.body)


def error_envelope(text: str, *, beside: frozenset[str] = frozenset()) -> Iterator[str]:
    """`beside`: keys that may stand beside `error`."""
    body = json.loads(text)
    if body.keys() - beside != {"error"} or body["error"].keys() != {"message", "type", "param", "code"}:
        yield f"no error envelope: {text[:200]}"
    elif not body["error"]["message"]:
        yield "an error without a message"
    else:
        yield from _against_schema("ErrorResponse", body)


def _anthropic_error(text: str) -> Iterator[str]:
    body = json.loads(text)
    if body.get("type") != "error" or not body.get("error", {}).keys() >= {"type", "message"}:
        yield f"no error of Anthropic's: {text[:200]}"


def _stream(route: Route, answered: Answered) -> Iterator[str]:
    events = list(_events(answered.body, is_whole=answered.is_whole))
    texts = [text for _, text in events]
    for name, text in events:
        if text == DONE:
            continue
        yield from _part(route, text)
        if name is not None and name != json.loads(text).get("type"):
            yield f"an event named {name}, of another type: {text[:100]}"
    if DONE in texts[:-1]:
        yield "more after [DONE]"
    if answered.is_whole and answered.path.endswith("/completions"):
        yield from _chunks(texts)


def _chunks(texts: list[str]) -> Iterator[str]:
    """Of chat and completions: what all have in common, and that they end in [DONE] or in an error."""
    failed = bool(texts) and texts[-1] != DONE and "error" in json.loads(texts[-1])
    if not failed and texts[-1:] != [DONE]:
        yield "a stream that ends in silence"
    chunks = [chunk for chunk in (json.loads(text) for text in texts if text != DONE) if "error" not in chunk]
    for key in ("id", "created", "model", "object", "system_fingerprint"):
        if len({chunk.get(key) for chunk in chunks}) > 1:
            yield f"chunks of one answer with several {key}"


def _part(route: Route, text: str) -> Iterator[str]:
    """One event or frame: of the answer, or the error that ends it."""
    body = json.loads(text)
    if "error" in body and "type" not in body:
        yield from error_envelope(text, beside=frozenset({"request_id"}))
    elif body.get("type") == "error" and "error" in body:
        return  # of a WebSocket, or Anthropic's
    elif body == PING:
        return
    elif route.event is None:
        yield "an event where there is none"
    else:
        yield from judge(route.event, text)


def _events(stream: str, *, is_whole: bool) -> Iterator[tuple[str | None, str]]:
    """The name and the data of each event, without comments."""
    blocks = stream.split("\n\n")
    for block in blocks if is_whole else blocks[:-1]:
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        names = [value for name, _, value in lines if name == "event"]
        data = [value for name, _, value in lines if name == "data"]
        if data:
            yield names[0] if names else None, "\n".join(data)


_right: set[tuple[str, str]] = set()


def judge(shape: Shape, text: str) -> list[str]:
    """One JSON value against both. What looks like what was found right is right too, and not judged again."""
    look = (str(shape), _look(text))
    if look in _right:
        return []
    body = json.loads(text)
    found = [*(_against_schema(shape.schema, body) if shape.schema else ()), *_against_sdk(shape, body)]
    if not found:
        _right.add(look)
    return found


def _look(text: str) -> str:
    """Without what no schema looks at: numbers, and texts that can't be of an enumeration."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"(?!:)', _enumerated, text)
    return re.sub(r"\b\d+\b", "0", bare)


def _enumerated(match: re.Match[str]) -> str:
    return match[0] if re.fullmatch(r'"[a-z_.]{1,40}"', match[0]) else '""'


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{schema}", "components": {"schemas": SCHEMAS}}
    return jsonschema.Draft202012Validator(root)


@functools.cache
def _adapter(sdk: Any) -> TypeAdapter[Any]:
    return TypeAdapter(sdk)


def _against_schema(schema: str, body: Any) -> Iterator[str]:
    if isinstance(body, dict) and body.get("type") in UNKNOWN_TO_SCHEMAS:
        return
    for error in _validator(_meant(schema, body)).iter_errors(body):
        deepest = jsonschema.exceptions.best_match([error]) or error
        key = str(deepest.absolute_path[-1]) if deepest.absolute_path else ""
        if (schema, key, json.dumps(deepest.instance)) not in DEVIATIONS and not _is_base64(schema, deepest):
            yield f"{schema} {deepest.json_path}: {deepest.message[:300]}"


def _meant(schema: str, body: Any) -> str:
    """Of a union, the branch of the body's type: what is wrong with that one is what matters."""
    branches = [branch["$ref"].rsplit("/", 1)[-1] for branch in SCHEMAS[schema].get("anyOf", ()) if "$ref" in branch]
    kinds = {name: SCHEMAS[name].get("properties", {}).get("type", {}).get("enum", ()) for name in branches}
    return next((name for name, kind in kinds.items() if body.get("type") in kind), schema)


def _is_base64(schema: str, error: jsonschema.ValidationError) -> bool:
    """OpenAI's schema leaves out what its own SDK asks for."""
    return (
        schema == "CreateEmbeddingResponse" and "embedding" in error.absolute_path and isinstance(error.instance, str)
    )


def _against_sdk(shape: Shape, body: Any) -> Iterator[str]:
    try:
        parsed = _adapter(shape.sdk).validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            path = ".".join(map(str, detail["loc"]))
            given = json.dumps(_at(body, detail["loc"]))
            is_known = (shape.schema, str(detail["loc"][-1]), given) in DEVIATIONS
            if not is_known and not (path.endswith(".embedding") and given.startswith('"')):
                yield f"{getattr(shape.sdk, '__name__', shape.schema)} {path}: {detail['msg']}"
    else:
        yield from (f"an unknown key: {path}" for path in _unknown(parsed, ""))


def _at(node: Any, path: tuple[int | str, ...]) -> Any:
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            continue  # the name of a branch of a union
    return node


def _unknown(node: Any, path: str) -> Iterator[str]:
    """The keys that no type of the SDK has."""
    if isinstance(node, BaseModel):
        allowed = EXTENSIONS | OF_A_PAGE if isinstance(node, SyncCursorPage) else EXTENSIONS
        extra = [key for key in node.model_extra or {} if (getattr(node, "type", None), key) not in REQUIRED_BY_SCHEMAS]
        yield from (f"{path}{key}" for key in extra if key not in allowed)
        for key in node.model_fields_set - (node.model_extra or {}).keys():
            yield from _unknown(getattr(node, key), f"{path}{key}.")
    elif isinstance(node, list):
        for item in node:
            yield from _unknown(item, path)
