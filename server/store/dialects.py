"""What the two databases spell through different constructs."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, SQLColumnExpression, Table, TableValuedAlias, Text, cast, column, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from server.store.tables import Base


async def insert_or_ignore(
    session: AsyncSession, entity: type[Base], rows: Sequence[dict[str, Any]], *, unique: str
) -> None:
    """Insert the rows, but leave those whose `unique` column's value is stored already as they are stored."""
    table = entity.__table__
    assert isinstance(table, Table)
    connection = await session.connection()
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(insert(table).on_conflict_do_nothing(index_elements=[unique]), rows)


def elements(dialect: str, array: SQLColumnExpression[Any]) -> TableValuedAlias:
    """A JSON array of texts as rows, in the column `value`: to join with the row that holds it, or to select from."""
    if dialect == "postgresql":
        return func.json_array_elements_text(cast(array, JSON)).table_valued(column("value", Text))
    return func.json_each(array).table_valued(column("value", Text))
