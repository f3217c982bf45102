"""A real PostgreSQL in a temporary folder, for tests: ends with them."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path

_numbers = count()


def find_programs() -> Path | None:
    """The folder of the newest version's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def why_not() -> str | None:
    """The reason why none can be started here."""
    if find_programs() is None:
        return "no initdb is installed (Debian, Ubuntu: apt-get install postgresql)"
    if os.geteuid() == 0 and not (shutil.which("runuser") and _exists("postgres")):
        return "running as root without a user postgres"
    return None


class PostgresServer:
    """A server of our own in a temporary folder, on a Unix socket only."""

    def __init__(self) -> None:
        programs = find_programs()
        assert programs is not None, why_not()
        self.programs = programs
        # PostgreSQL refuses to run as root
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.user = "postgres" if self.prefix else getpass.getuser()
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 bytes
        if self.prefix:
            shutil.chown(self.folder, "postgres")

    def run(self, program: str, *arguments: str) -> None:
        command = [*self.prefix, str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        # not captured: the server inherits the output and would keep the pipe open
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        self.run("initdb", "--no-sync", "--auth=trust", f"--username={self.user}", "--encoding=UTF8")
        options = f"-c listen_addresses='' -k {self.folder} -c fsync=off -c max_connections=60"
        self.run("pg_ctl", "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg  # an optional dependency

        name = f"test{next(_numbers)}"
        with psycopg.connect(host=str(self.folder), user=self.user, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{self.user}@/{name}?host={self.folder}"

    @cache  # noqa: B019 (there is one server)
    def shared_database(self) -> str:
        return self.new_database()


def _exists(user: str) -> bool:
    return subprocess.run(["id", user], capture_output=True, check=False).returncode == 0
