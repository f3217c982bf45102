import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from server import keys
from server.access import authenticate_route, current_principal, require_admin
from server.auth import Authenticator, Principal
from server.errors import APIError, AuthenticationFailed, Overloaded
from server.store import Store
from server.store.credentials import ensure_presets, issue_key
from server.store.keys import KeySpec
from server.store.records import Account, Credential, Key, KeyKind, utc_now

PEPPER = b"pepper"
START = utc_now()
ACCOUNT = Account("acct_1", "acme", "gold", {"account": {"rpm": 1}}, START, False)
KEY = Key("", "acct_1", "acme", KeyKind.API, "", None, None, {"rpm": 2}, "cli", START, None, None, None)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


class Source:
    """Keys in a dictionary; counts the questions and can hold back or fail its answers."""

    def __init__(self) -> None:
        self.by_id: dict[str, Credential] = {}
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.touched: list[Mapping[str, datetime]] = []

    def add(self, text: str, key_id: str, **changes: Any) -> None:
        key = dataclasses.replace(KEY, id=key_id, **changes)
        self.by_id[key_id] = Credential(key, ACCOUNT, keys.digest(PEPPER, text))

    def new(self, **changes: Any) -> keys.NewKey:
        new = keys.generate()
        self.add(new.text, new.id, **changes)
        return new

    def revoke(self, key_id: str) -> None:
        found = self.by_id[key_id]
        key = dataclasses.replace(found.key, revoked_at=START)
        self.by_id[key_id] = dataclasses.replace(found, key=key)

    async def find_by_id(self, key_id: str) -> Credential | None:
        answer = self.by_id.get(key_id)  # read before the wait, as a database's snapshot is
        await self._ask()
        return answer

    async def find_by_digest(self, digest: bytes) -> Credential | None:
        answer = next((c for c in self.by_id.values() if c.digest == digest), None)
        await self._ask()
        return answer

    async def touch(self, used: Mapping[str, datetime]) -> None:
        if self.error:
            raise self.error
        self.touched.append(dict(used))

    async def _ask(self) -> None:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.error:
            raise self.error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def auth(source: Source, clock: Clock) -> Authenticator:
    return Authenticator(source, PEPPER, clock=clock, now=clock.now)


async def _refused(auth: Authenticator, text: str | None) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        await auth.authenticate(text)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    return caught.value.message


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_good_key_is_its_principal(auth: Authenticator, source: Source) -> None:
    new = source.new(models=frozenset({"big"}), features=frozenset({"chat"}))
    assert await auth.authenticate(new.text) == Principal(
        account_id="acct_1",
        account_name="acme",
        key_id=new.id,
        kind=KeyKind.API,
        models=frozenset({"big"}),
        features=frozenset({"chat"}),
        plan="gold",
        overrides={"account": {"rpm": 1}},
        limits={"rpm": 2},
        expires_at=None,
    )


async def test_a_preset_of_another_form_is_found_by_digest(auth: Authenticator, source: Source) -> None:
    source.add("any text of 16 or more".replace(" ", "-"), "k1")
    assert (await auth.authenticate("any-text-of-16-or-more")).key_id == "k1"


async def test_scopes(auth: Authenticator, source: Source) -> None:
    scoped = await auth.authenticate(
        source.new(models=frozenset({"big", "small@1"}), features=frozenset({"chat"})).text
    )
    assert scoped.may_use_model("big", "7")
    assert scoped.may_use_model("small", "1")
    assert not scoped.may_use_model("small", "2")
    assert scoped.may_use_feature("chat")
    assert not scoped.may_use_feature("tools")
    free = await auth.authenticate(source.new().text)
    assert free.may_use_model("anything", "1")
    assert free.may_use_feature("tools")
    empty = await auth.authenticate(source.new(models=frozenset()).text)
    assert not empty.may_use_model("big", "1")


@pytest.mark.parametrize("text", [None, ""])
async def test_no_key_is_told_how_to_present_one(auth: Authenticator, text: str | None) -> None:
    refused = await _refused(auth, text)
    assert "Authorization, using Bearer auth" in refused
    assert "x-api-key" in refused


async def test_every_wrong_key_has_one_message_without_it(auth: Authenticator, source: Source, clock: Clock) -> None:
    revoked = source.new(revoked_at=START)
    expired = source.new(expires_at=START)
    disabled = source.new()
    disabled_account = dataclasses.replace(ACCOUNT, disabled=True)
    source.by_id[disabled.id] = dataclasses.replace(source.by_id[disabled.id], account=disabled_account)
    forged = keys.generate()
    source.add("another text", forged.id)  # the id exists, the secret is wrong
    texts = [revoked.text, expired.text, disabled.text, forged.text, keys.generate().text, "short", "x" * 1000]
    assert {await _refused(auth, text) for text in texts} == {"Incorrect API key provided."}


async def test_garbage_never_reaches_the_database(auth: Authenticator, source: Source) -> None:
    for text in ("sk-pen-xxx", "short", "x" * 10_000, "x" * 20 + "\n", " " + "x" * 20, "\x00" * 20):
        await _refused(auth, text)
    assert source.asked == 0


async def test_answers_are_kept_for_the_time_to_live(auth: Authenticator, source: Source, clock: Clock) -> None:
    good, bad = source.new(), keys.generate()
    for clock.seconds in (0.0, 1.0, 2.9):
        await auth.authenticate(good.text)
        await _refused(auth, bad.text)
    assert source.asked == 2
    clock.seconds = 3.0
    await auth.authenticate(good.text)
    await _refused(auth, bad.text)
    assert source.asked == 4


async def test_a_revocation_elsewhere_holds_after_the_time_to_live(
    auth: Authenticator, source: Source, clock: Clock
) -> None:
    new = source.new()
    await auth.authenticate(new.text)
    source.revoke(new.id)
    clock.seconds = 3.0
    await _refused(auth, new.text)


async def test_the_age_of_an_answer_counts_from_the_question(auth: Authenticator, source: Source, clock: Clock) -> None:
    new = source.new()
    source.gate.clear()
    first = asyncio.create_task(auth.authenticate(new.text))
    await _settle()
    source.revoke(new.id)
    clock.seconds = 3.0  # the database took that long
    source.gate.set()
    await first
    await _refused(auth, new.text)


async def test_a_revocation_here_holds_at_once(auth: Authenticator, source: Source) -> None:
    new, other = source.new(), source.new()
    await auth.authenticate(new.text)
    await auth.authenticate(other.text)
    source.revoke(new.id)
    auth.invalidate(new.id)
    await _refused(auth, new.text)
    await auth.authenticate(other.text)
    assert source.asked == 3  # the other one's answer was kept


async def test_a_question_asked_before_a_revocation_leaves_no_answer(auth: Authenticator, source: Source) -> None:
    new = source.new()
    source.gate.clear()
    before = asyncio.create_task(auth.authenticate(new.text))
    await _settle()
    source.revoke(new.id)
    auth.invalidate(new.id)
    after = asyncio.create_task(_refused(auth, new.text))
    await _settle()
    source.gate.set()
    await before  # it came before the revocation
    await after
    await _refused(auth, new.text)


async def test_a_disabled_account_holds_at_once(auth: Authenticator, source: Source) -> None:
    new = source.new()
    await auth.authenticate(new.text)
    disabled = dataclasses.replace(ACCOUNT, disabled=True)
    source.by_id[new.id] = dataclasses.replace(source.by_id[new.id], account=disabled)
    auth.invalidate_account(ACCOUNT.id)
    await _refused(auth, new.text)
    source.by_id[new.id] = dataclasses.replace(source.by_id[new.id], account=ACCOUNT)
    auth.invalidate_account(ACCOUNT.id)
    await auth.authenticate(new.text)


async def test_a_key_expires_while_its_answer_is_kept(auth: Authenticator, source: Source, clock: Clock) -> None:
    new = source.new(expires_at=START + timedelta(seconds=1))
    await auth.authenticate(new.text)
    clock.seconds = 1.0
    await _refused(auth, new.text)
    assert source.asked == 1


async def test_misses_of_one_key_share_one_question(auth: Authenticator, source: Source) -> None:
    new = source.new()
    source.gate.clear()
    waiting = [asyncio.create_task(auth.authenticate(new.text)) for _ in range(50)]
    await _settle()
    source.gate.set()
    assert {principal.key_id for principal in await asyncio.gather(*waiting)} == {new.id}
    assert source.asked == 1


async def test_one_waiter_may_leave(auth: Authenticator, source: Source) -> None:
    new = source.new()
    source.gate.clear()
    first, second = (asyncio.create_task(auth.authenticate(new.text)) for _ in range(2))
    await _settle()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    source.gate.set()
    assert (await second).key_id == new.id
    assert source.asked == 1


async def test_a_flood_of_bad_keys_is_bounded(source: Source, clock: Clock) -> None:
    auth = Authenticator(source, PEPPER, cache_size=20, clock=clock, now=clock.now)
    good = source.new()
    await auth.authenticate(good.text)
    source.gate.clear()
    flood = [asyncio.create_task(auth.authenticate(keys.generate().text)) for _ in range(1500)]
    await _settle()
    assert source.most_at_once <= Authenticator.STRANGERS
    refused = [task.exception() for task in flood if task.done()]
    assert len(refused) == 1500 - Authenticator.MAX_WAITING
    assert all(isinstance(error, Overloaded) for error in refused)
    clock.seconds = 3.0  # a key known to be good does not wait behind them
    again = asyncio.create_task(auth.authenticate(good.text))
    await _settle()
    assert source.most_at_once == Authenticator.STRANGERS + 1
    source.gate.set()
    assert (await again).key_id == good.id
    await asyncio.gather(*flood, return_exceptions=True)
    assert len(auth._bad) == 20
    assert auth._loading == {}
    assert auth._waiting == 0


async def test_a_repeated_bad_key_asks_once(auth: Authenticator, source: Source) -> None:
    text = keys.generate().text
    for _ in range(100):
        await _refused(auth, text)
    assert source.asked == 1


async def test_good_answers_are_bounded(source: Source, clock: Clock) -> None:
    auth = Authenticator(source, PEPPER, cache_size=3, clock=clock, now=clock.now)
    made = [source.new() for _ in range(5)]
    for new in made:
        await auth.authenticate(new.text)
    assert len(auth._good) == 3
    await auth.authenticate(made[-1].text)
    assert source.asked == 5


@pytest.mark.parametrize("error", [OSError("away"), TimeoutError()])
async def test_a_database_that_is_away_opens_nothing(
    auth: Authenticator, source: Source, clock: Clock, error: Exception
) -> None:
    new = source.new()
    await auth.authenticate(new.text)
    source.error = error
    await auth.authenticate(new.text)  # still young
    clock.seconds = 3.0
    with pytest.raises(Overloaded) as caught:
        await auth.authenticate(new.text)
    assert caught.value.status == 503
    source.error = None
    await auth.authenticate(new.text)  # the failure was not kept


async def test_a_database_that_hangs_is_given_up(source: Source) -> None:
    auth = Authenticator(source, PEPPER, store_timeout=0.01)
    source.gate.clear()
    with pytest.raises(Overloaded):
        await auth.authenticate(source.new().text)


async def test_last_use_is_written_in_batches(auth: Authenticator, source: Source, clock: Clock) -> None:
    first, second = source.new(), source.new()
    for clock.seconds in (0.0, 1.0):
        await auth.authenticate(first.text)
    await auth.authenticate(second.text)
    await _refused(auth, keys.generate().text)
    source.error = OSError("away")
    await auth.flush_used()
    source.error = None
    clock.seconds = 2.0
    await auth.authenticate(second.text)
    await auth.close()
    expected = {first.id: START + timedelta(seconds=1), second.id: START + timedelta(seconds=2)}
    assert source.touched == [expected]
    await auth.close()
    assert len(source.touched) == 1


async def test_the_task_writes_last_use(auth: Authenticator, source: Source) -> None:
    auth.start(interval_s=0.001)
    await auth.authenticate(source.new().text)
    while not source.touched:
        await asyncio.sleep(0.001)
    await auth.close()


async def test_no_key_is_logged(auth: Authenticator, source: Source, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good, revoked, unknown = source.new(), source.new(revoked_at=START), keys.generate()
    await auth.authenticate(good.text)
    await _refused(auth, revoked.text)
    await _refused(auth, unknown.text)
    source.error = OSError("away")
    with pytest.raises(Overloaded):
        await auth.authenticate(source.new().text)
    assert revoked.id in caplog.text
    for new in (good, revoked, unknown):
        assert new.text.split("-")[3] not in caplog.text


# The dependencies, over HTTP and WebSocket.


def _app(services: object) -> FastAPI:
    app = FastAPI(dependencies=[Depends(authenticate_route)], openapi_url=None)
    app.state.penstock = services

    @app.exception_handler(APIError)
    async def answer(_: Request, error: APIError) -> JSONResponse:
        return JSONResponse(error.envelope(), error.status, error.headers)

    async def whoami(principal: Annotated[Principal, Depends(current_principal)]) -> dict[str, str]:
        return {"key": principal.key_id}

    async def status() -> dict[str, str]:
        return {"status": "ok"}

    async def for_admins(admin: Annotated[Principal, Depends(require_admin)]) -> dict[str, str]:
        return {"key": admin.key_id}

    async def socket(websocket: WebSocket, principal: Annotated[Principal, Depends(current_principal)]) -> None:
        await websocket.accept("penstock" if "penstock" in websocket.scope["subprotocols"] else None)
        await websocket.send_text(principal.key_id)
        await websocket.close()

    for path in ("/healthz", "/health", "/readyz", "/healthz/x", "/v1/models", "/metrics", "/administer"):
        app.add_api_route(path, status)
    app.add_api_route("/v1/whoami", whoami)
    app.add_api_route("/admin/v1/accounts", for_admins)
    app.add_api_route("/elsewhere/accounts", for_admins)  # as if mounted under another path
    app.add_api_websocket_route("/v1/chat/completions", socket)
    return app


@pytest.fixture
def service(auth: Authenticator) -> FastAPI:
    return _app(SimpleNamespace(authenticator=auth))


@pytest.fixture
async def client(service: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://test") as opened:
        yield opened


def _bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


CLOSED = [
    "/v1/models",
    "/v1/whoami",
    "/metrics",
    "/admin/v1/accounts",
    "/healthz/x",
    "/administer",
    "/elsewhere/accounts",
]


@pytest.mark.parametrize("path", ["/healthz", "/health", "/readyz"])
async def test_open_paths_ask_nothing(client: httpx.AsyncClient, source: Source, path: str) -> None:
    assert (await client.get(path)).status_code == 200
    assert (await client.get(path, headers=_bearer(keys.generate().text))).status_code == 200
    assert source.asked == 0


@pytest.mark.parametrize("path", CLOSED)
async def test_every_other_path_is_closed(client: httpx.AsyncClient, path: str) -> None:
    missing = await client.get(path)
    assert missing.status_code == 401
    assert missing.headers["www-authenticate"] == "Bearer"
    assert missing.json()["error"]["code"] == "invalid_api_key"
    wrong = keys.generate().text
    refused = await client.get(path, headers=_bearer(wrong))
    assert refused.status_code == 401
    assert wrong[:12] not in refused.text


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        (KeyKind.API, {"/v1/models", "/v1/whoami", "/healthz/x", "/administer"}),
        (KeyKind.ADMIN, {"/metrics", "/admin/v1/accounts"}),
    ],
)
async def test_each_kind_of_key_opens_its_own(
    client: httpx.AsyncClient, source: Source, kind: KeyKind, allowed: set[str]
) -> None:
    new = source.new(kind=kind)
    for path in CLOSED:
        answer = await client.get(path, headers=_bearer(new.text))
        assert answer.status_code == (200 if path in allowed else 403), path
        if path not in allowed:
            assert answer.json()["error"]["code"] == "permission_denied"


async def test_one_request_asks_once(client: httpx.AsyncClient, source: Source, clock: Clock) -> None:
    new = source.new(kind=KeyKind.ADMIN)
    assert (await client.get("/admin/v1/accounts", headers=_bearer(new.text))).json() == {"key": new.id}
    assert source.asked == 1


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_written_any_way(client: httpx.AsyncClient, source: Source, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {source.new().text}"}
    assert (await client.get("/v1/whoami", headers=headers)).status_code == 200


@pytest.mark.parametrize("form", ["{}", "Basic {}", "Bearer", "Bearer {} more", "Bearer {},{}", "Token {}"])
async def test_other_forms_are_refused(client: httpx.AsyncClient, source: Source, form: str) -> None:
    headers = {"authorization": form.replace("{}", source.new().text)}
    assert (await client.get("/v1/whoami", headers=headers)).status_code == 401


async def test_two_headers_are_refused(client: httpx.AsyncClient, source: Source) -> None:
    new = source.new()
    headers = [("authorization", f"Bearer {new.text}"), ("authorization", f"Bearer {new.text}")]
    assert (await client.get("/v1/whoami", headers=headers)).status_code == 401


async def test_other_places_are_not_read(client: httpx.AsyncClient, source: Source) -> None:
    text = source.new().text
    elsewhere = {"api-key": text, "sec-websocket-protocol": f"openai-insecure-api-key.{text}"}
    answer = await client.get("/v1/whoami", headers=elsewhere, params={"api_key": text})
    assert answer.status_code == 401


def _connect(service: FastAPI, **options: Any) -> tuple[str, str | None]:
    with (
        TestClient(service) as opened,
        opened.websocket_connect("/v1/chat/completions", **options) as socket,
    ):
        return socket.receive_text(), socket.accepted_subprotocol


def test_a_websocket_presents_its_key_in_the_header(service: FastAPI, source: Source) -> None:
    new = source.new()
    assert _connect(service, headers=_bearer(new.text)) == (new.id, None)


def test_a_browsers_websocket_presents_its_key_as_a_subprotocol(service: FastAPI, source: Source) -> None:
    new = source.new()
    offered = ["penstock", f"openai-insecure-api-key.{new.text}"]
    assert _connect(service, subprotocols=offered) == (new.id, "penstock")


@pytest.mark.parametrize("count", [0, 2])
def test_a_websocket_without_one_key_is_refused(service: FastAPI, source: Source, count: int) -> None:
    offered = ["penstock", *[f"openai-insecure-api-key.{source.new().text}"] * count]
    with pytest.raises((APIError, WebSocketDisconnect)):
        _connect(service, subprotocols=offered)


async def test_the_whole_life_of_a_key_in_a_real_store(tmp_path: Path, clock: Clock) -> None:
    store = await Store.open(data_dir=tmp_path)
    auth = Authenticator(store.keys, PEPPER, clock=clock)
    await ensure_presets(store, PEPPER, "preset-api-key-0001", "preset-admin-key-0001")
    assert (await auth.authenticate("preset-api-key-0001")).account_name == "default"
    assert (await auth.authenticate("preset-admin-key-0001")).kind is KeyKind.ADMIN
    account = await store.accounts.create("acme", "gold")
    old, new = [await issue_key(store, PEPPER, KeySpec(account)) for _ in range(2)]  # rotation: both live
    for issued in (old, new):
        assert (await auth.authenticate(issued.text)).plan == "gold"
    await store.keys.revoke(old.key.id)
    auth.invalidate(old.key.id)
    await _refused(auth, old.text)
    await auth.close()
    used = {key.id: key.last_used_at for key in await store.keys.list(account.id)}
    assert all(used.values())
    await store.accounts.update(account.id, disabled=True)
    clock.seconds = 3.0
    await _refused(auth, new.text)
    await store.close()
