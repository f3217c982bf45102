"""The engine under the repositories: where the database is, how it is opened, what a transaction is."""

import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from server.store.errors import StoreError
from server.store.migrate import upgrade

FILE_NAME = "penstock.db"
BUSY_TIMEOUT_S = 10
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_EXPECTED = "expected sqlite+aiosqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


class Database:
    """One engine. Sessions are short: `async with database.read() as session`, `async with database.write() ...`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name  # "sqlite" or "postgresql"
        self._readers = async_sessionmaker(engine, expire_on_commit=False)
        self._writers = async_sessionmaker(engine.execution_options(sqlite_begin="IMMEDIATE"), expire_on_commit=False)

    @classmethod
    async def open(cls, url: str, data_dir: Path | None) -> Self:
        """Connect and bring the schema up to date. Raises `StoreError` with one line for the operator."""
        parsed = database_url(url, data_dir)
        if parsed.get_backend_name() == "sqlite":
            _prepare_file(parsed)
        shown = parsed.render_as_string(hide_password=True)
        try:
            database = cls(_engine(parsed))
        except (ImportError, NoSuchModuleError) as error:
            raise StoreError(f"database_url: no driver for {shown} is installed ({_first_line(error)})") from error
        try:
            async with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
                await connection.run_sync(upgrade)
        except (SQLAlchemyError, OSError) as error:
            await database.close()
            raise StoreError(f"database_url: can't open {shown}: {_first_line(error)}") from error
        except StoreError:
            await database.close()
            raise
        return database

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session for one question; nothing is committed."""
        return self._readers()

    def write(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A transaction: committed at the end of the block, rolled back on an exception.

        On SQLite it takes the write lock at its start: one that read first and locked later would fail at once
        ("database is locked") where another process wrote in between, instead of waiting its turn.
        """
        return self._writers.begin()

    async def exclusive(self, session: AsyncSession, lock: int) -> None:
        """Let only one `write` block with this number run at a time, over all processes, up to its end."""
        if self.dialect == "postgresql":
            await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})

    async def close(self) -> None:
        await self.engine.dispose()


@contextmanager
def unavailable() -> Iterator[None]:
    """What the database does not do, as a `StoreError` of one line."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"database_url: the database can't be used: {_first_line(error)}") from error


def database_url(url: str, data_dir: Path | None) -> URL:
    """The URL of the database, its driver filled in. Raises `StoreError`."""
    if not url:
        if data_dir is None:
            raise StoreError("data_dir: expected a folder, since database_url is empty")
        return URL.create("sqlite+aiosqlite", database=str(data_dir / FILE_NAME))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(f"database_url: not a URL, {_EXPECTED}") from None
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None or parsed.drivername not in {parsed.get_backend_name(), driver}:
        raise StoreError(f"database_url: {parsed.drivername} is not supported, {_EXPECTED}")
    if parsed.query and parsed.get_backend_name() == "sqlite":
        raise StoreError("database_url: a SQLite file takes no options after '?'")
    return parsed.set(drivername=driver)


def _engine(url: URL) -> AsyncEngine:
    # hide_parameters: an error's text must never carry stored values into a log
    if url.get_backend_name() != "sqlite":
        arguments = {"connect_timeout": 5}
        return create_async_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
    event.listen(engine.sync_engine, "begin", _on_sqlite_begin)
    return engine


def _on_sqlite_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: _on_sqlite_begin does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")  # a revocation survives a power cut; we commit twice a second
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _prepare_file(url: URL) -> None:
    """Make the file and its folder, for the owner only: it holds the pepper and the digests of keys."""
    if url.database in {None, "", ":memory:"}:
        return
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        reason = error.strerror or "can't be opened"
        raise StoreError(f"data_dir: can't write {path}: {reason}") from error


def _first_line(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
