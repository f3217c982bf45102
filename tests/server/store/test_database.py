import asyncio
import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from server.store import Store, StoreError
from server.store.database import Database, database_url
from server.store.migrate import config
from server.store.tables import Base, KeyRow, SettingRow


def _differences(connection: Connection) -> object:
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)


async def test_the_migrated_schema_is_the_declared_one(store: Store) -> None:
    async with store.database.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_the_comparison_sees_a_difference(own_store: Store) -> None:
    async with own_store.database.engine.begin() as connection:
        await connection.execute(text("DROP INDEX ix_usage_day"))
        assert await connection.run_sync(_differences) != []


async def test_an_existing_database_keeps_its_rows(url: str) -> None:
    first = await Store.open(url)
    await first.accounts.create("acme")
    await first.close()
    second = await Store.open(url)
    assert [account.name for account in await second.accounts.list()] == ["acme"]
    await second.close()


async def test_processes_may_start_together_on_an_empty_database(url: str) -> None:
    stores = await asyncio.gather(*(Store.open(url) for _ in range(4)))
    peppers = {await store.settings.get_or_set("pepper", str(number)) for number, store in enumerate(stores)}
    assert len(peppers) == 1
    for store in stores:
        await store.close()


async def test_a_downgrade_and_an_upgrade_end_where_they_began(own_store: Store) -> None:
    async with own_store.database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(config(sync), "base"))
        await connection.run_sync(lambda sync: command.upgrade(config(sync), "head"))
        assert await connection.run_sync(_differences) == []


async def test_a_database_of_a_newer_penstock_is_refused(url: str) -> None:
    store = await Store.open(url)
    async with store.database.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await store.close()
    with pytest.raises(StoreError, match="newer Penstock"):
        await Store.open(url)


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "mysql://u:hunter22@h/d",
        "postgresql+asyncpg://u:hunter22@h/d",
        "sqlite+pysqlite:///x",
        "://",
        "postgresql://u:hunter22@h:port/d",
    ],
)
def test_a_bad_url_is_one_line_without_its_password(bad: str) -> None:
    with pytest.raises(StoreError) as caught:
        database_url(bad, None)
    assert "\n" not in str(caught.value)
    assert "database_url" in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("short", ["postgres://u@h/d", "postgresql://u@h/d"])
def test_the_driver_is_filled_in(short: str) -> None:
    assert database_url(short, None).drivername == "postgresql+psycopg"


async def test_a_server_that_is_away_is_one_line_without_its_password() -> None:
    with pytest.raises(StoreError) as caught:
        await Store.open("postgresql+psycopg://u:hunter22@127.0.0.1:1/d")
    assert "\n" not in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("unknown", ["sqlite:///test.db?colour=1", "postgresql://u@127.0.0.1:1/d?colour=1"])
async def test_an_unknown_option_is_one_line(unknown: str) -> None:
    with pytest.raises(StoreError, match="database_url") as caught:
        await Store.open(unknown)
    assert "\n" not in str(caught.value)


async def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="data_dir: can't write") as caught:
        await Store.open(data_dir=tmp_path / "file" / "data")
    assert "\n" not in str(caught.value)


async def test_no_folder_and_no_url_is_refused() -> None:
    with pytest.raises(StoreError, match="data_dir"):
        await Store.open()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "penstock.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreError, match="can't open"):
        await Store.open(data_dir=tmp_path)


async def test_sqlite_is_set_up_and_for_the_owner_only(tmp_path: Path) -> None:
    store = await Store.open(data_dir=tmp_path / "data")
    async with store.database.read() as session:
        assert await session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1
        assert await session.scalar(text("PRAGMA busy_timeout")) == 10_000
    files = [path for path in (tmp_path / "data").iterdir() if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    await store.close()


async def test_writers_of_one_file_wait_their_turn(url: str) -> None:
    """Each block reads first and writes later: with a late lock some would fail at once."""
    stores = [await Store.open(url) for _ in range(4)]
    await stores[0].settings.set("count", "0")

    async def add(store: Store) -> None:
        for _ in range(10):
            async with store.database.write() as session:
                await store.database.exclusive(session, 1)
                row = await session.get_one(SettingRow, "count")
                await asyncio.sleep(0)
                row.value = str(int(row.value) + 1)

    await asyncio.gather(*map(add, stores))
    assert await stores[0].settings.get("count") == "40"
    for store in stores:
        await store.close()


async def test_errors_show_no_stored_values(store: Store) -> None:
    with pytest.raises(IntegrityError) as caught:
        async with store.database.write() as session:
            await session.execute(
                insert(KeyRow).values(id="k", digest=b"secret-digest", account_id="nobody", kind="api")
            )
    assert "secret-digest" not in str(caught.value).split("DETAIL")[0]


async def test_a_failed_block_writes_nothing(store: Store) -> None:
    async def fail() -> None:
        async with store.database.write() as session:
            session.add(SettingRow(name="a", value="b"))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await store.settings.get("a") is None


async def test_a_database_can_be_closed_twice(url: str) -> None:
    database = await Database.open(url, None)
    await database.close()
    await database.close()
