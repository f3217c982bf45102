"""Canaries in every field of every request: none of them is in a log, a metric, an error's body or a process's name."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets.sync.client

from server.keys import generate
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.wire.inside import MODELS
from tests.wire.requests import BOUNDARY, GOOD, form
from tests.wire.shapes import Shaper, body_schema, operations

SECRET = "canary-9d1f5c"
EACH = 40  # requests of each kind, so that every field has its turn
# What names a thing is said again to who asked for it: which one there is none of.
NAMES_THINGS = ("/v1/batches", "/v1/responses", "/admin/", "/v1/files")
CREATES_AN_ACCOUNT = "POST /admin/v1/accounts"  # whose name is in the log, as it is meant to be
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    config = f'[server]\nlog_level = "debug"\n{MODELS}'
    with PenstockProcess(tmp_path_factory.mktemp("canaries"), config) as running:
        yield running


def test_no_field_of_any_request_is_written_down(server: PenstockProcess) -> None:
    with server.http() as user, server.http(ADMIN_KEY) as admin:
        admin.post("/admin/v1/accounts", json={"name": "spare"}).raise_for_status()  # one that may be disabled
        for name, operation in operations().items():
            if (schema := body_schema(operation)) is None or name == CREATES_AN_ACCOUNT:
                continue
            method, path = name.split(" ")
            shaper = Shaper(random.Random(name), lambda: SECRET, share=0.4)
            client = admin if path.startswith("/admin/") else user
            for _ in range(EACH):
                target = path.replace("{account}", "spare").replace("{", "").replace("}", "")
                answer = client.request(method, target, json=shaper.value(schema))
                if answer.status_code >= 400 and not path.startswith(NAMES_THINGS):
                    assert SECRET not in answer.json()["error"]["message"], (name, answer.text)
    nothing_is_written_down(server, SECRET)


def test_nothing_around_a_body_is_written_down(server: PenstockProcess) -> None:
    """But for `x-request-id`, by which a client finds its request in the log."""
    wrong, right = generate().text, json.dumps(GOOD[f"POST {CHAT}"]).encode()
    with server.http(None) as stranger, server.http() as user:
        for headers in ({"authorization": f"Bearer {wrong}"}, {"x-api-key": wrong}, {"authorization": wrong}):
            stranger.post(CHAT, headers=headers, content=right)
        for broken in (f'{{"messages": "{SECRET}', f"\xff{SECRET}", f'{{"{SECRET}": 1}}', f'["{SECRET}"]', SECRET):
            user.post(CHAT, content=broken.encode())
        user.post(CHAT, content=right, headers={"referer": SECRET, "user-agent": SECRET, "cookie": SECRET})
        for method in ("GET", "POST", "DELETE"):
            user.request(method, f"/v1/{SECRET}?key={API_KEY}&x={SECRET}")
        user.get("/v1/files", params={SECRET: SECRET, "after": SECRET})
        typed = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        user.post("/v1/files", content=form({"purpose": "batch"}, SECRET.encode()), headers=typed)
        user.post("/v1/files", content=form({"purpose": SECRET}, SECRET.encode())[:-9], headers=typed)
        other = {"content-type": f"multipart/form-data; boundary={SECRET}"}
        user.post("/v1/files", content=SECRET.encode(), headers=other)
    say_on_a_socket(server, [SECRET, f'{{"{SECRET}": 1}}', json.dumps(GOOD[f"POST {CHAT}"] | {"user": SECRET})])
    nothing_is_written_down(server, SECRET, wrong, wrong.split("-")[3])


def say_on_a_socket(server: PenstockProcess, frames: list[str]) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with websockets.sync.client.connect(f"{server.websocket_url}?x={SECRET}", additional_headers=headers) as socket:
        for frame in frames:
            socket.send(frame)
            socket.recv()


def nothing_is_written_down(server: PenstockProcess, *secrets: str) -> None:
    """In the log of all processes at debug level, in the metrics, in any process's arguments."""
    with server.http(ADMIN_KEY) as admin:
        metrics = admin.get("/metrics").raise_for_status().text
    log = server.log.read_text()
    assert '"level": "info"' in log
    folders = [Path(f"/proc/{pid}") for pid in processes(server)]
    names = b"".join((folder / file).read_bytes() for folder in folders for file in ("cmdline", "comm"))
    for secret in (API_KEY, ADMIN_KEY, *secrets):
        at = log.find(secret)
        assert at < 0, log[max(0, at - 300) : at + 100]
        assert secret not in metrics
        assert secret.encode() not in names


def processes(server: PenstockProcess) -> list[int]:
    found = [server.pid]
    for pid in found:
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found
