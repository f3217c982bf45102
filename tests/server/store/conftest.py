"""A store over each database that there is: SQLite always, PostgreSQL where its programs are installed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.store import Store
from server.store.tables import Base
from tests.postgres_server import PostgresServer


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
