"""The tables, declared. Portable between SQLite and PostgreSQL; `migrations/` builds the same schema."""

import json
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Every constraint has a name, so that a later migration can change it on SQLite too."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, stored in UTC and read back in UTC (SQLite keeps no zone). A naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a stored time needs its zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class NameSet(TypeDecorator[frozenset[str]]):
    """A set of names as a sorted JSON array. Text, not JSON: PostgreSQL can't group by a JSON column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: frozenset[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(sorted(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> frozenset[str] | None:
        return None if value is None else frozenset(json.loads(value))


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class AccountRow(Base):
    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    plan: Mapped[str] = mapped_column(String(64))
    overrides: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled: Mapped[bool] = mapped_column(Boolean)


class KeyRow(Base):
    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    kind: Mapped[str] = mapped_column(String(8))
    name: Mapped[str] = mapped_column(String(128))
    models: Mapped[frozenset[str] | None] = mapped_column(NameSet)
    features: Mapped[frozenset[str] | None] = mapped_column(NameSet)
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_by: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_by: Mapped[str | None] = mapped_column(String(32))
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class UsageRow(Base):
    """One finished request. No foreign keys: what was spent is a record of its own, never refused."""

    __tablename__ = "usage"
    __table_args__ = (Index(None, "account_id", "day"), Index(None, "day"))

    # SQLite only numbers rows by itself in a column of exactly INTEGER
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(128), unique=True)
    account_id: Mapped[str] = mapped_column(String(32))
    key_id: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    endpoint: Mapped[str] = mapped_column(String(128))
    features: Mapped[frozenset[str]] = mapped_column(NameSet)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    queue_ms: Mapped[int | None] = mapped_column(BigInteger)
    first_token_ms: Mapped[int | None] = mapped_column(BigInteger)
    total_ms: Mapped[int] = mapped_column(BigInteger)
    outcome: Mapped[str] = mapped_column(String(64))
    cache: Mapped[str | None] = mapped_column(String(8))
    day: Mapped[date] = mapped_column(Date)


class PlanRow(Base):
    """A plan that the admin API set: it stands in place of the configuration file's of that name."""

    __tablename__ = "plans"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    tables: Mapped[dict[str, Any]] = mapped_column(JSON)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class FileRow(Base):
    """What an account uploaded, or a batch wrote. Its bytes are in `file_chunks`."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "account_id", "id"), Index(None, "state", "expires_at"))

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    num_chunks: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class FileChunkRow(Base):
    """No foreign key: a large file's chunks are deleted in several transactions, while nobody can see it any more."""

    __tablename__ = "file_chunks"

    file_id: Mapped[str] = mapped_column(String(48), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ResponseRow(Base):
    """A response of `/v1/responses`: `body` is its JSON as a client gets it. While it runs, `lease_until` says until
    when the gateway `owner` is believed to be at it."""

    __tablename__ = "responses"
    __table_args__ = (Index(None, "expires_at"), Index(None, "lease_until"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(32))
    parent_id: Mapped[str | None] = mapped_column(String(256))  # whose conversation it goes on with
    status: Mapped[str] = mapped_column(String(16))
    is_background: Mapped[bool] = mapped_column(Boolean)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    owner: Mapped[str] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)  # None: it has ended
    cancel_requested: Mapped[bool] = mapped_column(Boolean)


class ResponseItemRow(Base):
    """An item of a response's conversation: of its input, or of its output."""

    __tablename__ = "response_items"
    __table_args__ = (Index(None, "account_id", "item_id"),)

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True)
    is_output: Mapped[bool] = mapped_column(Boolean, primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    item_id: Mapped[str] = mapped_column(String(256))
    account_id: Mapped[str] = mapped_column(String(32))
    item: Mapped[str] = mapped_column(Text)


class ResponseEventsRow(Base):
    """Events of a response that were written together, a line each: those from `first` to `last`."""

    __tablename__ = "response_events"

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True)
    first: Mapped[int] = mapped_column(Integer, primary_key=True)
    last: Mapped[int] = mapped_column(Integer)
    events: Mapped[str] = mapped_column(Text)


class BatchRow(Base):
    """`owner` is the gateway that runs it, as long as it renews `lease_until`."""

    __tablename__ = "batches"
    __table_args__ = (Index(None, "account_id", "id"), Index(None, "status", "lease_until"))

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(32))
    key_id: Mapped[str] = mapped_column(String(32))
    endpoint: Mapped[str] = mapped_column(String(128))
    input_file_id: Mapped[str] = mapped_column(String(48), index=True)
    model: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    output_seconds: Mapped[int | None] = mapped_column(Integer)
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    output_file_id: Mapped[str | None] = mapped_column(String(48))
    error_file_id: Mapped[str | None] = mapped_column(String(48))
    total: Mapped[int] = mapped_column(Integer)
    completed: Mapped[int] = mapped_column(Integer)
    failed: Mapped[int] = mapped_column(Integer)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    in_progress_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finalizing_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    failed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancelling_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancelled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    owner: Mapped[str | None] = mapped_column(String(32))
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class BatchResultRow(Base):
    """One line that has run, until all have and its result is in a file."""

    __tablename__ = "batch_results"

    batch_id: Mapped[str] = mapped_column(String(48), primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True)
    is_error: Mapped[bool] = mapped_column(Boolean)
    output: Mapped[bytes] = mapped_column(LargeBinary)


class SettingRow(Base):
    """A value that Penstock made for itself: the pepper of keys, the ids of the first ones."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
