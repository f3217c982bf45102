"""A real nginx with the file of `deploy/`, on free loopback ports, for tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.certificate import make_certificate
from tests.penstock_process import ROOT, Address
from tests.quota.redis_server import free_port

WHY_NOT = "no nginx: install it (Debian, Ubuntu: apt-get install nginx-light) to test gateways behind it"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def program() -> str | None:
    """Not everybody has /usr/sbin on PATH."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class NginxServer(Address):
    """`ports` are the gateways'."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self._folder = folder
        self._ports = ports
        self._port = free_port()
        self._certificate, self._key = make_certificate(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = f"https://127.0.0.1:{self._port}/v1"
        self.trust = ssl.create_default_context(cafile=str(self._certificate))

    def start(self) -> None:
        self._configure()
        command = [str(program()), "-p", str(self._folder), "-e", "error.log", "-c", "nginx.conf"]
        self._process = subprocess.Popen([*command, "-g", "daemon off; pid nginx.pid;"])
        while not self._listens():
            assert self._process.poll() is None, (self._folder / "error.log").read_text()
            time.sleep(0.02)

    def leave_out(self, ports: Collection[int]) -> None:
        """As an operator does who is about to restart these gateways. Returns once the new configuration holds."""
        assert self._process is not None
        old = self._workers()
        self._configure(down=ports)
        self._process.send_signal(signal.SIGHUP)
        while any(self._accepts(pid) for pid in old) or not self._workers() - old:
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _workers(self) -> set[int]:
        assert self._process is not None
        pid = self._process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    @staticmethod
    def _accepts(worker: int) -> bool:
        """An old one finishes what it has."""
        try:
            title = Path(f"/proc/{worker}/cmdline").read_bytes()
        except FileNotFoundError:
            return False
        return bool(title) and b"shutting down" not in title

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _configure(self, down: Collection[int] = ()) -> None:
        """The very file, but for what belongs to its machine."""
        text = (ROOT / "deploy" / "nginx.conf").read_text()
        for number, port in enumerate(self._ports, 1):
            text = _replace(text, f"server 127.0.0.1:800{number}", f"server 127.0.0.1:{port}{' down' * (port in down)}")
        text = _replace(text, "listen 443 ssl", f"listen 127.0.0.1:{self._port} ssl")
        text = _replace(text, "/etc/penstock/tls.crt", str(self._certificate))
        text = _replace(text, "/etc/penstock/tls.key", str(self._key))
        places = "".join(f"{name}_temp_path {name}; " for name in TEMPORARY)
        text = _replace(text, "http {", f"http {{ access_log off; {places}")
        assert not re.search(r":800\d|/etc/penstock", text)
        (self._folder / "nginx.conf").write_text(text)


def _replace(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old} is not in the file once"
    return text.replace(old, new)
