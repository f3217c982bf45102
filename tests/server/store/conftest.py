"""A store over each database that there is: SQLite always, PostgreSQL where its programs are installed."""

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import psycopg
import pytest

from server.store import Store
from server.store.tables import Base

_numbers = count()


class PostgresServer:
    """A server of our own in a temporary folder, on a Unix socket only."""

    def __init__(self, programs: Path) -> None:
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
        name = f"test{next(_numbers)}"
        with psycopg.connect(host=str(self.folder), user=self.user, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{self.user}@/{name}?host={self.folder}"

    @cache  # noqa: B019 (there is one server)
    def shared_database(self) -> str:
        return self.new_database()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("no initdb is installed")
    if os.geteuid() == 0 and not (shutil.which("runuser") and _exists("postgres")):
        pytest.skip("running as root without a user postgres")
    server = PostgresServer(Path(initdb).parent)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)


def _exists(user: str) -> bool:
    return subprocess.run(["id", user], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def own_store(url: str) -> AsyncIterator[Store]:
    """A store whose schema the test may change."""
    opened = await Store.open(url)
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store. On PostgreSQL all tests share one database, since making one takes a while."""
    if request.param == "sqlite":
        opened = await Store.open(data_dir=tmp_path)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        opened = await Store.open(server.shared_database())
        async with opened.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                await session.execute(table.delete())
    yield opened
    await opened.close()
