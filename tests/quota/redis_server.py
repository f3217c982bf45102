"""A real redis-server on a free loopback port, for tests: keeps nothing on disk, ends with the test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

WHY_NOT = "no redis-server on PATH: install it (Debian, Ubuntu: apt-get install redis-server) to test the shared ledger"


def is_installed() -> bool:
    return shutil.which("redis-server") is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """Can be killed and started again on its port, each time with nothing in its memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(self._folder)}
        options["enable-debug-command"] = "local"  # DEBUG DIGEST: whether anything was written
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended at once"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def configure(self, name: str, value: str) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(f"CONFIG SET {name} {value}\r\n".encode())
            assert connection.recv(64).startswith(b"+OK")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
