"""Every route of the application against every credential that must not open it, generated from its route table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp

from server.access import OPEN_PATHS
from server.keys import generate
from server.store.records import KeyKind, utc_now
from server.websocket import RESPONSES_PATH
from tests.penstock_process import ADMIN_KEY, API_KEY
from tests.wire.inside import Answer, Inside, bearer, inside
from tests.wire.requests import BOUNDARY, GOOD, form

WEBSOCKET = "WEBSOCKET"
HTTP_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "get", "")
HOSTS = (
    "",
    "localhost",
    "127.0.0.1",
    "a/healthz?",
    "healthz",
    "x@127.0.0.1",
    "[::1]",
    "a b",
    "\xff",
    "/healthz#",
    "..",
)
NEEDS_NO_FEATURE = {"tokenize", "detokenize", "input_tokens", "count_tokens", "moderations"}
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Guarded:
    """A method and a path of the table, `target` with things of the default account in it that are there."""

    method: str
    path: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_admin(self) -> bool:
        return self.path == "/metrics" or self.path.startswith("/admin/")

    @property
    def good(self) -> dict[str, Any]:
        if self.method == WEBSOCKET:
            named = {"type": "response.create"} if self.path == RESPONSES_PATH else {}
            return named | GOOD.get(f"POST {self.path}", {})
        return GOOD[self.name] if self.method in ("POST", "PUT", "PATCH") else {}

    @property
    def body(self) -> bytes:
        if self.name == "POST /v1/files":
            return form({"purpose": "user_data"})
        return json.dumps(self.good).encode() if self.good else b""

    @property
    def type(self) -> Headers:
        is_form = self.name == "POST /v1/files"
        return [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())] if is_form else []


def application(app: ASGIApp) -> FastAPI:
    """Inside what stands around it."""
    while not isinstance(app, FastAPI):
        app = app.app if hasattr(app, "app") else app._app  # type: ignore[attr-defined]
    return app


def table(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Methods and paths. A kind of route that this does not know is not passed over."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:  # how FastAPI keeps a router
            yield from table(router.routes, prefix + route.include_context.prefix)  # type: ignore[attr-defined]
        elif isinstance(route, APIRoute | Route):
            yield from ((method, prefix + route.path) for method in route.methods or HTTP_METHODS)
        elif isinstance(route, APIWebSocketRoute | WebSocketRoute):
            yield WEBSOCKET, prefix + route.path
        elif isinstance(route, Mount):
            yield from table(route.routes, prefix + route.path) if route.routes else [("GET", prefix + route.path)]
        else:
            raise TypeError(f"{type(route).__name__}: the matrix does not know how to ask for it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


async def guarded(house: Inside) -> list[Guarded]:
    """All but the open paths, with ids of things that are there."""
    owner = bearer(API_KEY)
    type_of_form = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    file = await house.call("POST", "/v1/files", headers=owner + type_of_form, body=form({"purpose": "batch"}))
    batch_body = GOOD["POST /v1/batches"] | {"input_file_id": file.json()["id"]}
    batch = await house.call("POST", "/v1/batches", headers=owner, body=json.dumps(batch_body).encode())
    asked = json.dumps(GOOD["POST /v1/responses"] | {"store": True}).encode()
    response = await house.call("POST", "/v1/responses", headers=owner, body=asked)
    ids = {
        "file_id": file.json()["id"],
        "batch_id": batch.json()["id"],
        "response_id": response.json()["id"],
        "key_id": (await house.key())[1],
        "account": "default",
        "model": "echo",
        "deployment": "echo@1",
        "name": "default",
        "path": "v1/anything",
    }
    names = re.compile(r"\{(\w+)(?::\w+)?\}")
    found = sorted(set(table(application(house.app).routes)))
    return [
        Guarded(method, names.sub(r"{\1}", path), names.sub(lambda match: ids[match[1]], path))
        for method, path in found
        if path not in OPEN_PATHS
    ]


async def ask(house: Inside, route: Guarded, headers: Headers) -> int:
    """The status of the answer; over a WebSocket, that of its one error. 200 when there is none."""
    if route.method != WEBSOCKET:
        answer = await house.call(route.method, route.target, headers=headers + route.type, body=route.body)
        return answer.status
    frames = await house.converse(route.target, headers, [json.dumps(route.good)])
    codes = {frame["error"]["code"] if "error" in frame else None for frame in frames} or {None}
    statuses = {"invalid_api_key": 401, "permission_denied": 403, "model_not_found": 404, "unknown_url": 404}
    return statuses.get(codes.pop(), 200) if len(codes) == 1 else 200


async def bad_credentials(house: Inside) -> dict[str, Headers]:
    """None of these is a key."""
    expired, _ = await house.key(expires_at=utc_now() - timedelta(seconds=1))
    revoked, revoked_id = await house.key()
    await house.services.store.keys.revoke(revoked_id)
    disabled, _ = await house.key("disabled")
    account = await house.services.store.accounts.get("disabled")
    assert account is not None
    await house.services.store.accounts.update(account.id, disabled=True)
    issued, _ = await house.key()
    wrong_sum = issued[:-1] + ("0" if issued[-1] != "0" else "1")
    unknown = generate().text
    other_secret = "-".join([*issued.split("-")[:3], unknown.split("-")[3], issued.split("-")[4]])
    keys = {
        "empty": "", "malformed": "sk-pen-x", "bad checksum": wrong_sum, "unknown id": unknown,
        "another secret": other_secret, "expired": expired, "revoked": revoked, "of a disabled account": disabled,
        "other case": API_KEY.upper(), "cut off": API_KEY[:-1], "longer": API_KEY + "x", "a pattern": "%",
        "its id alone": issued.split("-")[2], "its digest": "0" * 64, "too long": "x" * 20_000, "null": "\x00" * 16,
    }  # fmt: skip
    headers: dict[str, Headers] = {name: bearer(key) for name, key in keys.items()}
    headers |= {f"x-api-key {name}": [(b"x-api-key", key.encode())] for name, key in keys.items()}
    good = API_KEY.encode()
    return headers | {
        "no key": [],
        "no scheme": [(b"authorization", good)],
        "another scheme": [(b"authorization", b"Basic " + good)],
        "in a cookie": [(b"cookie", b"authorization=Bearer " + good)],
        "in another header": [(b"x-authorization", b"Bearer " + good), (b"proxy-authorization", b"Bearer " + good)],
        "two keys": bearer(API_KEY) + bearer(ADMIN_KEY),
        "two kinds of header": [*bearer(API_KEY), (b"x-api-key", good)],
        "garbage": [(b"authorization", b"Bearer \xff\x80")],
    }


def variants(target: str) -> list[str]:
    """Other ways to write a path. A server that normalised some of them would let them through to the route."""
    return [
        *("/" + target, target + "/", target + "/.", "/." + target, target.replace("/", "//"), target.upper()),
        *("/healthz/.." + target, "/healthz%2f.." + target, "/healthz;" + target, "/healthz?" + target),
        *(target + "%00", target + "%20", target + ";x", target + "?key=" + API_KEY, target + "#/healthz"),
        *(target.replace("/", "%2f", 1), target.replace("/", "/%2e/", 1), target.replace("e", "%65")),
        *("/healthz" + target, target + "/healthz", target + "/../healthz", "http://healthz" + target, target[1:]),
    ]


def leaks(answer: Answer) -> bool:
    """Whether it says more than that something is refused, unknown, or open to all."""
    is_open = answer.status == 200 and re.fullmatch(rb'({"status":"[a-z]+"})?', answer.body)
    return answer.status not in (401, 404, 405) and not is_open


async def unguarded(house: Inside, routes: Iterable[Guarded], credentials: dict[str, Headers]) -> list[str]:
    """What was not refused with a 401."""
    return [
        f"{route.name}: {name}"
        for route in routes
        for name, headers in credentials.items()
        if await ask(house, route, headers) != 401
    ]


async def test_no_credential_that_is_none_opens_a_route(folder: Path) -> None:
    async with inside(folder) as house:
        routes, credentials = await guarded(house), await bad_credentials(house)
        assert {WEBSOCKET, "GET", "POST", "PUT", "PATCH", "DELETE"} <= {route.method for route in routes}
        assert await unguarded(house, routes, credentials) == []


async def test_each_key_opens_what_it_is_for_and_no_more(folder: Path) -> None:
    """Kinds of keys, scopes, and the things of another account."""
    async with inside(folder) as house:
        routes = await guarded(house)
        stranger, _ = await house.key("stranger")
        other_model, _ = await house.key(models=frozenset({"nobody"}))
        no_feature, _ = await house.key(features=frozenset())
        other_admin, _ = await house.key("admin", kind=KeyKind.ADMIN, models=frozenset({"nobody"}))
        wrong = []
        for route in routes:
            cases: list[tuple[str, str, set[int]]] = []
            if route.path != "/openapi.json":
                cases.append(("the other kind", API_KEY if route.is_admin else ADMIN_KEY, {403}))
            if re.search(r"\{(file|batch|response)_id\}", route.path):
                cases.append(("another account", stranger, {404}))
            if "model" in route.good or "{model}" in route.path:
                cases.append(("another model", other_model, {404}))
            if "{deployment}" in route.path:
                cases.append(("an administrator of another model", other_admin, {404}))
            if "model" in route.good and route.path.rsplit("/", 1)[1] not in NEEDS_NO_FEATURE:
                cases.append(("no feature", no_feature, {403}))
            for name, key, expected in cases:
                if (status := await ask(house, route, bearer(key))) not in expected:
                    wrong.append(f"{route.name}: {name}: {status}")
        assert wrong == []


async def test_no_method_no_host_and_no_path_opens_a_route(folder: Path) -> None:
    async with inside(folder) as house:
        wrong = []
        for route in {route.target: route for route in await guarded(house)}.values():
            tries = [(method, route.target, []) for method in HTTP_METHODS]
            tries += [("GET", route.target, [(b"host", host.encode("latin-1"))]) for host in HOSTS]
            tries += [("GET", target, []) for target in variants(route.target)]
            tries += [("POST", route.target, [(name, b"GET")]) for name in (b"x-http-method-override", b"x-method")]
            for method, target, headers in tries:
                if leaks(await house.call(method, target, headers=headers, body=b"{}")):
                    wrong.append(f"{method} {target} {headers}")
        assert wrong == []


async def test_a_new_route_without_authentication_is_found(folder: Path) -> None:
    """However it is added."""

    async def answer(*_: object) -> PlainTextResponse:
        return PlainTextResponse("secret")

    async def talk(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text('{"secret": 1}')
        await websocket.close()

    async with inside(folder) as house:
        app = application(house.app)
        before = set(table(app.routes))
        app.router.routes[:0] = [
            Route("/new", answer),
            WebSocketRoute("/new-socket", talk),
            Mount("/mounted", routes=[Route("/inner", answer)]),
            Mount("/opaque", app=PlainTextResponse("secret")),
        ]
        new = [Guarded(method, path, path) for method, path in set(table(app.routes)) - before]
        found = await unguarded(house, new, {"no key": []})
        assert {name.split(":")[0].split()[1] for name in found} == {"/new", "/new-socket", "/mounted/inner", "/opaque"}
        app.router.routes.append(BaseRoute())
        with pytest.raises(TypeError, match="BaseRoute"):
            list(table(app.routes))
