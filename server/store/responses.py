"""Responses as they are kept: with the items of their conversations and the events of their streams.

While one runs, its gateway renews a lease with every write. One whose lease has run out is anybody's to end.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from server.store.database import Database
from server.store.dialects import insert_or_ignore
from server.store.errors import TooMuch
from server.store.tables import ResponseEventsRow, ResponseItemRow, ResponseRow

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`body` is the response's JSON. `lease_until` is None when it has ended."""

    id: str
    account_id: str
    parent_id: str | None
    status: str
    is_background: bool
    body: str
    created_at: datetime
    expires_at: datetime
    owner: str
    lease_until: datetime | None
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """A response that is written for the first time, and its own input."""

    response: StoredResponse
    inputs: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Progress:
    """What is new of a response. `first` is the sequence number of the first of its events."""

    response_id: str
    account_id: str
    owner: str
    status: str
    lease_until: datetime | None
    first: int = 0
    events: Sequence[bytes] = ()
    body: str | None = None  # None: as it was
    output: Sequence[Item] = ()
    opening: Opening | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a running response stands with others: whether it still is its gateway's, and whether it is to stop."""

    is_ours: bool
    is_cancelled: bool = False


class Responses:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- by the gateway that runs them

    async def write(self, news: Sequence[Progress]) -> list[Standing]:
        """What is new of several responses, in one transaction, and their leases renewed; nothing of one that is not
        its gateway's any more. The same may be written again: after a failure nobody knows whether it was."""
        async with self._database.write() as session:
            return [await _write(session, progress) for progress in news]

    # --- by its account, at any gateway

    async def get(self, account_id: str, response_id: str) -> StoredResponse | None:
        async with self._database.read() as session:
            row = await session.scalar(_own(account_id, response_id))
            return None if row is None else _stored(row)

    async def delete(self, account_id: str, response_id: str) -> bool:
        """False if there is none of that id."""
        async with self._database.write() as session:
            query = delete(ResponseRow).where(ResponseRow.id == response_id, ResponseRow.account_id == account_id)
            return await session.scalar(query.returning(ResponseRow.id)) is not None

    async def request_cancel(self, account_id: str, response_id: str) -> None:
        """Its gateway sees it with its next write."""
        where = ResponseRow.id == response_id, ResponseRow.account_id == account_id
        async with self._database.write() as session:
            await session.execute(update(ResponseRow).where(*where).values(cancel_requested=True))

    async def events_after(self, response_id: str, sequence_number: int, num_rows: int | None = None) -> list[bytes]:
        """In order, as far as they are written, or those of `num_rows` rows."""
        rows = ResponseEventsRow.response_id == response_id, ResponseEventsRow.last > sequence_number
        query = select(ResponseEventsRow).where(*rows).order_by(ResponseEventsRow.first).limit(num_rows)
        async with self._database.read() as session:
            found = (await session.scalars(query)).all()
        return [
            event
            for row in found
            for number, event in enumerate(row.events.encode().split(b"\n"), row.first)
            if number > sequence_number
        ]

    async def has_events(self, response_id: str) -> bool:
        query = select(ResponseEventsRow.first).where(ResponseEventsRow.response_id == response_id).limit(1)
        async with self._database.read() as session:
            return await session.scalar(query) is not None

    async def inputs(
        self, account_id: str, response_id: str, *, after: str | None = None, limit: int = 20, descending: bool = False
    ) -> list[Item] | None:
        """Of one response's own input, those that come after the item of this id; None where there is no such item."""
        own = ResponseItemRow.response_id == response_id, ResponseItemRow.account_id == account_id
        query = select(ResponseItemRow.item).where(*own, ResponseItemRow.is_output.is_(False)).limit(limit)
        position = ResponseItemRow.position
        async with self._database.read() as session:
            if after is not None:
                where = (*own, ResponseItemRow.is_output.is_(False), ResponseItemRow.item_id == after)
                if (at := await session.scalar(select(position).where(*where))) is None:
                    return None
                query = query.where(position < at if descending else position > at)
            items = await session.scalars(query.order_by(position.desc() if descending else position))
            return [json.loads(item) for item in items]

    async def items(self, account_id: str, item_ids: Collection[str]) -> dict[str, Item]:
        """Those that the account has, by id; of one that stands in several responses, the latest."""
        query = select(ResponseItemRow.item_id, ResponseItemRow.item).join(
            ResponseRow, ResponseRow.id == ResponseItemRow.response_id
        )
        query = query.where(ResponseItemRow.account_id == account_id, ResponseItemRow.item_id.in_(item_ids))
        async with self._database.read() as session:
            rows = await session.execute(query.order_by(ResponseRow.created_at))
            return {item_id: json.loads(item) for item_id, item in rows}

    async def conversation(self, account_id: str, response_id: str, max_characters: int) -> list[Item] | None:
        """Everything up to and with this response's output, its ancestors' first; None where one of them is gone.
        Raises TooMuch where it is longer, as JSON, than `max_characters`."""
        own = select(ResponseRow.id, ResponseRow.parent_id).where(ResponseRow.account_id == account_id)
        chain = own.where(ResponseRow.id == response_id).add_columns(literal(0).label("depth")).cte(recursive=True)
        older = own.join(chain, ResponseRow.id == chain.c.parent_id).add_columns(chain.c.depth + 1)
        chain = chain.union_all(older)
        oldest = select(chain.c.parent_id).order_by(chain.c.depth.desc()).limit(1)
        of_chain = chain.c.id == ResponseItemRow.response_id
        size = select(func.sum(func.length(ResponseItemRow.item))).join(chain, of_chain)
        query = select(ResponseItemRow.item).join(chain, of_chain)
        query = query.order_by(chain.c.depth.desc(), ResponseItemRow.is_output, ResponseItemRow.position)
        async with self._database.read() as session:
            if (await session.execute(oldest)).all() != [(None,)]:
                return None
            if (await session.scalar(size) or 0) > max_characters:
                raise TooMuch(f"a conversation is longer than {max_characters} characters")
            return [json.loads(item) for item in await session.scalars(query)]

    # --- by whoever has the time

    async def abandoned(self, now: datetime, limit: int = 20) -> list[StoredResponse]:
        """Those that run by what is written, but whose gateway has not been heard of for too long."""
        query = select(ResponseRow).where(ResponseRow.lease_until < now).limit(limit)
        async with self._database.read() as session:
            return [_stored(row) for row in await session.scalars(query)]

    async def take_over(self, response: StoredResponse, owner: str, now: datetime, lease_until: datetime) -> bool:
        """Make an abandoned one `owner`'s; False if another was faster, or its own gateway is back."""
        abandoned = ResponseRow.id == response.id, ResponseRow.lease_until < now
        values = {"owner": owner, "lease_until": lease_until}
        async with self._database.write() as session:
            query = update(ResponseRow).where(*abandoned).values(**values).returning(ResponseRow.id)
            return await session.scalar(query) is not None

    async def remove_expired(self, now: datetime, limit: int) -> int:
        """At most `limit` of those that have ended; how many there were."""
        expired = ResponseRow.expires_at < now, ResponseRow.lease_until.is_(None)
        ids = select(ResponseRow.id).where(*expired).order_by(ResponseRow.expires_at).limit(limit)
        async with self._database.write() as session:
            removed = await session.scalars(
                delete(ResponseRow).where(ResponseRow.id.in_(ids)).returning(ResponseRow.id)
            )
            return len(removed.all())


async def _write(session: AsyncSession, progress: Progress) -> Standing:
    if progress.opening is not None:
        await _open(session, progress.opening)
    values = {"status": progress.status, "lease_until": progress.lease_until}
    values |= {} if progress.body is None else {"body": progress.body}
    ours = ResponseRow.id == progress.response_id, ResponseRow.owner == progress.owner
    query = update(ResponseRow).where(*ours).values(**values).returning(ResponseRow.cancel_requested)
    if (is_cancelled := await session.scalar(query)) is None:
        return Standing(is_ours=False)
    if progress.events:
        same = ResponseEventsRow.response_id == progress.response_id, ResponseEventsRow.first >= progress.first
        await session.execute(delete(ResponseEventsRow).where(*same))
        session.add(_events_row(progress))
    if progress.output:
        await _put_items(session, progress.response_id, progress.account_id, progress.output, is_output=True)
    return Standing(is_ours=True, is_cancelled=is_cancelled)


async def _open(session: AsyncSession, opening: Opening) -> None:
    response = opening.response
    row = {name: getattr(response, name) for name in StoredResponse.__slots__}
    await insert_or_ignore(session, ResponseRow, [row], unique="id")
    await _put_items(session, response.id, response.account_id, opening.inputs, is_output=False)


async def _put_items(
    session: AsyncSession, response_id: str, account_id: str, items: Sequence[Item], *, is_output: bool
) -> None:
    same = ResponseItemRow.response_id == response_id, ResponseItemRow.is_output.is_(is_output)
    await session.execute(delete(ResponseItemRow).where(*same))
    rows = [
        {
            "response_id": response_id,
            "is_output": is_output,
            "position": position,
            "item_id": item["id"],
            "account_id": account_id,
            "item": json.dumps(item),
        }
        for position, item in enumerate(items)
    ]
    if rows:  # many of them would be slow as objects
        await session.execute(insert(ResponseItemRow), rows)


def _events_row(progress: Progress) -> ResponseEventsRow:
    first, events = progress.first, progress.events
    text = b"\n".join(events).decode()
    return ResponseEventsRow(response_id=progress.response_id, first=first, last=first + len(events) - 1, events=text)


def _own(account_id: str, response_id: str) -> Select[Any]:
    return select(ResponseRow).where(ResponseRow.id == response_id, ResponseRow.account_id == account_id)


def _stored(row: ResponseRow) -> StoredResponse:
    return StoredResponse(**{name: getattr(row, name) for name in StoredResponse.__slots__})
