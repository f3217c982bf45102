"""https and wss, with a certificate that the `openssl` command signs itself."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.penstock_process import API_KEY, FAKE_MODEL, PenstockProcess
from tests.wire.conftest import chat_body

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make a certificate with")


def _certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PenstockProcess, ssl.SSLContext]]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = _certificate(folder)
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
