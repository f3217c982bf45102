"""Brings a database's schema up to date, in one transaction, whoever else starts at the same time."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from server.store.errors import StoreError

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 7_368_001  # an arbitrary number that only this step uses


def upgrade(connection: Connection) -> None:
    """Run what is missing. Idempotent. Raises `StoreError` for a database of a newer Penstock."""
    if connection.dialect.name == "postgresql":  # SQLite's write lock, taken at BEGIN, does the same
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        message = "database_url: this database was made by a newer Penstock: start that one, or name another database"
        raise StoreError(message) from error


def config(connection: Connection) -> Config:
    """Alembic's configuration, without any file: the scripts beside us, on this connection."""
    result = Config()
    result.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    result.attributes["connection"] = connection
    return result
