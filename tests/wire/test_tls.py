"""https and wss."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests import certificate
from tests.penstock_process import API_KEY, FAKE_MODEL, PenstockProcess
from tests.wire.conftest import chat_body

pytestmark = pytest.mark.skipif(not certificate.can_be_made(), reason=certificate.WHY_NOT)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PenstockProcess, ssl.SSLContext]]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = certificate.make_certificate(folder)
    config = f'[server]\ntls_cert = "{cert}"\ntls_key = "{key}"\n{FAKE_MODEL}'
    with PenstockProcess(folder, config) as running:
        yield running, ssl.create_default_context(cafile=str(cert))


def test_https(secure: tuple[PenstockProcess, ssl.SSLContext]) -> None:
    server, trust = secure
    assert server.base_url.startswith("https://")
    sdk = server.sdk(http_client=httpx.Client(verify=trust))
    stream = sdk.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "x"}], max_tokens=4, stream=True
    )
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.root_url)  # nobody vouches for this certificate


def test_wss(secure: tuple[PenstockProcess, ssl.SSLContext]) -> None:
    server, trust = secure
    url = server.websocket_url
    assert url.startswith("wss://")
    with connect(url, ssl=trust, additional_headers={"Authorization": f"Bearer {API_KEY}"}) as ws:
        ws.send(json.dumps(chat_body(max_tokens=2)))
        while not json.loads(ws.recv())["choices"][0]["finish_reason"]:
            pass


def test_plain_http_is_not_answered(secure: tuple[PenstockProcess, ssl.SSLContext]) -> None:
    server, _ = secure
    with pytest.raises(httpx.TransportError):
        httpx.get(server.root_url.replace("https", "http") + "/healthz")
