"""A request's body -> a pydantic model, or an `APIError` that says what was expected.

FastAPI reads a body before it runs dependencies, so an unauthenticated client would be told about its body first.
Routes therefore take the `Request` and call `read_json` themselves.
"""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from server.errors import APIError, InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedParameter
from server.off_loop import off_loop_if

MAX_BODY_BYTES = 4 * 1024 * 1024
LONG_BODY_BYTES = 64 * 1024  # longer ones are parsed off the event loop
BODY_TIMEOUT_S = 30.0
MAX_NAMES = 4096  # of one object; each one that is unknown is an error that pydantic writes down
MAX_NESTED = 100_000  # lists and objects of one body, in all; the garbage collector visits each of them, repeatedly
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # or the rest of a body that never ends one: linear
_MAX_SHOWN = 200  # characters of a name or a message that may hold the client's own text
_CLOSE = {"connection": "close"}  # what is left of the body is not worth reading

T = TypeVar("T", bound=BaseModel)


async def read_json(
    request: Request, model: type[T], limit: int = MAX_BODY_BYTES, timeout: float = BODY_TIMEOUT_S
) -> T:
    """The body as `model`. Raises an `APIError` of status 400, 408 (no whole body after `timeout` seconds) or
    413 (more than `limit` bytes), and starlette's `ClientDisconnect` when there is nobody left to answer."""
    body = await read_body(request, limit, timeout)
    return await off_loop_if(len(body) > LONG_BODY_BYTES, lambda: parse_json(body, model))


async def read_body(request: Request, limit: int = MAX_BODY_BYTES, timeout: float = BODY_TIMEOUT_S) -> bytes:
    """The bytes of the body, counted while they arrive."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        message = f"The request's body did not arrive within {timeout:g} seconds."
        raise RequestTimeout(message, headers=_CLOSE) from None
    return bytes(body)


def parse_json(body: bytes, model: type[T]) -> T:
    """Two parses: the first refuses what JSON leaves open (NaN, a name twice), the second is pydantic's own, whose
    strictness for JSON differs from that for Python objects.

    Most of the time in here belongs to C code that never lets another thread run, so a thread alone keeps no event
    loop alive: models bound their lists and dicts (`wire.common.at_most`) and stop at a list's first error (fail_fast).
    """
    tree = _tree(body)
    if not isinstance(tree, dict):
        raise InvalidRequest("The request's body must be a JSON object.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error, tree) from None
    except APIError:  # a validator of ours that says it better
        raise
    except (OverflowError, RecursionError, ValueError):
        raise InvalidRequest("The request's body holds a value that can't be represented.") from None


def read_query(request: Request, model: type[T]) -> T:
    """The query string as `model`; `name[]`, any number of times, is a list. Raises InvalidRequest or
    UnsupportedParameter."""
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name.endswith("[]") and isinstance(several := values.setdefault(name[:-2], []), list):
            several.append(value)
        elif name in values:
            raise InvalidRequest(f"'{_short(name)}' stands twice in the query string.", param=_short(name))
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise from_validation(error, values) from None


def from_validation(error: ValidationError, tree: object) -> InvalidRequest:
    """The first offending field, in OpenAI's terms. `tree` is the JSON value that was validated."""
    details = error.errors(include_url=False, include_input=False)
    first = _path(details[0], tree)
    # A union reports every branch it tried: the error deepest in the same field is about the branch that was meant.
    about = [(path, d) for d in details if (path := _path(d, tree))[: len(first)] == first]
    deepest = max((path for path, _ in about), key=len)
    return _refusal(_dotted(deepest), [d for path, d in about if path == deepest])


def _refusal(param: str, details: Sequence[ErrorDetails]) -> InvalidRequest:
    kinds = {detail["type"] for detail in details}
    if "json_invalid" in kinds:
        return _invalid_json(details[0]["msg"].removeprefix("Invalid JSON: "))
    if "extra_forbidden" in kinds:
        return UnsupportedParameter(param)
    if "missing" in kinds:
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    expected = " or ".join(dict.fromkeys(_expectation(detail) for detail in details))
    expected = expected.replace(" or input should be ", " or ")
    subject = f"Invalid value for '{param}'" if param else "Invalid request"
    return InvalidRequest(f"{subject}: {_short(expected)}.", param=param or None)


def _expectation(detail: ErrorDetails) -> str:
    if detail["type"] == "union_tag_invalid":  # pydantic's own message repeats the value
        context = detail.get("ctx", {})
        return f"{context.get('discriminator')} should be one of {context.get('expected_tags')}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:].rstrip(".")


def _path(detail: ErrorDetails, tree: object) -> tuple[str | int, ...]:
    """Where the error is in the client's JSON: pydantic's location without the names of union branches."""
    path: list[str | int] = []
    node: Any = tree
    for part in detail["loc"]:
        if _holds(node, part):
            node = node[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def _holds(node: object, part: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and 0 <= part < len(node)
    return isinstance(node, dict) and part in node


def _dotted(path: Sequence[str | int]) -> str:
    return _short(".".join(map(str, path)))


def _short(text: str) -> str:
    """Bounded, and without the lone surrogates that JSON can write and no answer can carry."""
    text = text[:_MAX_SHOWN].encode("utf-8", "replace").decode() + text[_MAX_SHOWN:]
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _tree(body: bytes) -> object:
    if not body.strip():
        raise _invalid_json("the body is empty")
    _check_nested(body)
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise _invalid_json(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _invalid_json(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _invalid_json("nested too deeply") from None
    except ValueError:  # Python's bound on the digits of an integer
        raise _invalid_json("a number has too many digits") from None


def _check_nested(body: bytes) -> None:
    if _num_nested(body) > MAX_NESTED and _num_nested(_STRING.sub(b"", body)) > MAX_NESTED:
        raise InvalidRequest(f"The request's body holds more than {MAX_NESTED} lists and objects.")


def _num_nested(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise InvalidRequest(f"An object in the request's body has more than {MAX_NAMES} names.")
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _invalid_json(f"the name '{_short(twice)}' stands twice in one object")
    return found


def _no_constant(name: str) -> object:
    raise _invalid_json(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _invalid_json("a number is too large")
    return value


def _invalid_json(what: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the JSON body of your request: {_short(what)}.", code="invalid_json")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request's body is larger than {limit} bytes.", headers=_CLOSE)
