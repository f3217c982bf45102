"""Requests that no client means to send, each of them the function of a number."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.penstock_process import ADMIN_KEY, API_KEY
from tests.wire.inside import bearer
from tests.wire.requests import BOUNDARY, GOOD, form
from tests.wire.shapes import Shaper, body_schema, operations


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


TEXTS = (
    *("", " ", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "é", "💥" * 50, "x" * 5000, "9" * 5000, "%s%n%x"),
    *("../../etc/passwd", "' OR 1=1 --", "{{ 7*7 }}", "<|im_end|>", "</s>", "data: [DONE]\n\n", "null", "NaN", "echo@"),
    *("file-0", "batch_0", "resp_0", "2024-02-30T25:00:00Z", "-1", "1e999", "\r\nx: y", "data:image/png;base64,AAAA"),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), [], {}, [[]], {"": ""}, [None], {"a": None}, [1, "a", {}], "a"),
    *(nested(30), nested(200), list(range(1000)), ["x"] * 200, {str(i): i for i in range(1000)}, {"type": "text"}),
    *({"type": "function"}, {"$ref": "#"}, {"role": "user", "content": "x"}, {"type": "json_schema"}),
)
HEADERS = (
    (b"content-type", (b"text/plain", b"multipart/form-data", b"application/json; charset=utf-16", b"\xff", b"")),
    (b"content-length", (b"-1", b"0", b"99999999999999999999", b"1e3", b"\xff", b"5")),
    (b"content-encoding", (b"gzip", b"br", b"\xff")),
    (b"x-stainless-read-timeout", (b"nan", b"-1", b"1e999", b"\xff", b"30")),
    (b"x-request-id", (b"\xff\x00", b"x" * 5000, b"")),
    (b"anthropic-version", (b"2023-06-01", b"\xff")),
    (b"penstock-cache", (b"\xff", b"no", b"only")),
    (b"accept", (b"text/event-stream", b"*/*;q=\xff")),
)
IDS = {"account": "victim", "name": "victim", "deployment": "spare@1", "model": "echo", "key_id": "nobody00"}
METHODS_WITH_A_BODY = ("POST", "PUT", "PATCH")


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Mutator:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def request(self) -> Request:
        names = OPERATIONS_WITH_BODY if self._rng.random() < 0.9 else OPERATIONS
        name = self._rng.choice(names)
        method, path = name.split(" ")
        headers = bearer(ADMIN_KEY if path.startswith("/admin/") or path == "/metrics" else API_KEY)
        body = self._body(name) if method in METHODS_WITH_A_BODY else b""
        if name == "POST /v1/files":
            headers.append((b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode()))
        if self._rng.random() < 0.1:
            header, values = self._rng.choice(HEADERS)
            headers.append((header, self._rng.choice(values)))
        return Request(method, self._target(name, path), headers, body)

    def _target(self, name: str, path: str) -> str:
        if name.endswith("/load"):
            path = path.format(deployment="echo@1")  # one that serves: a process started for each would take hours
        for part in ("account", "name", "deployment", "model", "key_id", "file_id", "batch_id", "response_id"):
            known = IDS.get(part, f"{part}-0")
            odd = quote(self._text()[:300].encode("utf-8", "surrogatepass"), safe="")
            path = path.replace(f"{{{part}}}", known if self._rng.random() < 0.9 else odd or known)
        if self._rng.random() < 0.9 and not name.startswith("GET"):
            return path
        parameters = [p["name"] for p in OPERATION[name].get("parameters", ()) if p["in"] == "query"] or ["x"]
        values = [(self._rng.choice(parameters), self._text()[:300]) for _ in range(self._rng.randint(0, 3))]
        return path + "?" + "&".join(f"{key}={quote(text.encode('utf-8', 'surrogatepass'))}" for key, text in values)

    def _text(self) -> str:
        return "hello" if self._rng.random() < 0.5 else self._rng.choice(TEXTS)

    def _body(self, name: str) -> bytes:
        schema = body_schema(OPERATION[name])
        if schema is None:  # a form, or nothing
            fields = {key: self._text().encode("utf-8", "replace").decode() for key in ("purpose", "expires_after")}
            data = form({"purpose": "batch"} | fields if self._rng.random() < 0.5 else {"purpose": "batch"})
        else:
            base = Shaper(self._rng, self._text).value(schema) if self._rng.random() < 0.6 else deepcopy(GOOD[name])
            for _ in range(self._rng.choice([0, 1, 1, 2, 3])):
                base = self._mutated(base)
            data = self._written(base)
        return self._damaged(data) if self._rng.random() < 0.3 else data

    def _written(self, value: Any) -> bytes:
        text = json.dumps(value, ensure_ascii=self._rng.random() < 0.7)
        return text.encode("utf-8", "surrogatepass")

    def _mutated(self, value: Any) -> Any:
        """One node is another value, is gone, is there twice, or has one more beside it."""
        places = list(_places(value))
        if not places or self._rng.random() < 0.03:
            return self._odd()
        holder, key = self._rng.choice(places)
        match self._rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[self._rng.choice([*FIELDS, *TEXTS])] = self._odd()
            case 1 | 2 if isinstance(holder, list):
                holder.extend([holder[key]] * self._rng.choice([1, 20, 300]))
            case 2 if isinstance(holder, dict):
                holder[key] = [holder[key]]
            case _:
                holder[key] = self._odd()
        return value

    def _odd(self) -> Any:
        return json.loads(json.dumps(self._rng.choice([*ODD, *TEXTS])))

    def _damaged(self, data: bytes) -> bytes:
        rng, changed = self._rng, bytearray(data)
        at = rng.randrange(len(changed) + 1)
        changes: list[Callable[[], object]] = [
            lambda: changed.__delitem__(slice(at, None)),
            lambda: changed.__delitem__(slice(at, at + rng.randint(1, 8))),
            lambda: changed.__setitem__(slice(at, at + 1), rng.randbytes(1)),
            lambda: changed.__setitem__(
                slice(at, at), rng.choice([b"\xff", b"\x00", b'"', b"{", b"]", b",", b"\\u", b"-"])
            ),
            lambda: changed.__setitem__(slice(at, at), changed[at : at + rng.randint(1, 200)]),
            lambda: changed.__setitem__(slice(0, 0), b"\xef\xbb\xbf"),
            lambda: changed.__setitem__(slice(at, at), rng.choice([b"[", b'{"a":']) * 20_000),
            lambda: changed.__setitem__(slice(None), data.decode("utf-8", "replace").encode("utf-16")),
            lambda: changed.__setitem__(slice(None), gzip.compress(data, mtime=0)),
        ]
        rng.choice(changes)()
        return bytes(changed)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every key of every object and list in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


OPERATION = operations()
OPERATIONS = sorted(OPERATION)
OPERATIONS_WITH_BODY = [name for name in OPERATIONS if name.split(" ")[0] in METHODS_WITH_A_BODY]
FIELDS = sorted(
    {key for value in GOOD.values() for key in value} | {"stream", "tools", "n", "response_format", "store"}
)
