"""The durable records as the rest of the server sees them: plain values, times in UTC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from quota.levels import Level

REPLAYED = ("hit", "shared")
"""What `UsageRecord.cache` says of answers that came from the response cache."""


class KeyKind(StrEnum):
    """What a key opens. The two classes don't overlap."""

    API = "api"  # inference, for one account
    ADMIN = "admin"  # /admin and /metrics, never inference


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    name: str
    plan: str
    overrides: Mapping[str, Any]  # the tables of a plan (`quota.levels.Plan.parse`); {} is none
    created_at: datetime
    disabled: bool


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its digest: what may be shown to an administrator."""

    id: str
    account_id: str
    account_name: str
    kind: KeyKind
    name: str
    models: frozenset[str] | None  # None: all
    features: frozenset[str] | None  # None: all
    limits: Mapping[str, Any]  # a table of limits (`quota.levels.Limits.parse`); {} is none
    created_by: str  # the id of the key that made it, or "cli", or of the first ones "start" (generated) or "preset"
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Credential:
    """What authentication needs to judge a presented key, read in one query."""

    key: Key
    account: Account
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredPlan:
    name: str
    tables: Mapping[str, Any]  # what `quota.levels.Plan.parse` reads, as long as nobody else wrote here
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One finished request. `started_at` is when it was admitted: its day is the one whose budgets it spent."""

    request_id: str
    account_id: str
    key_id: str
    model: str
    version: str
    endpoint: str
    features: frozenset[str]
    prompt_tokens: int
    cached_tokens: int  # of the prompt
    completion_tokens: int
    started_at: datetime
    queue_ms: int | None
    first_token_ms: int | None  # None: there was none
    total_ms: int
    outcome: str  # the finish reason, or the error's code
    cache: str | None = None  # "hit", "shared" or "miss"; None: there was no response cache

    @property
    def is_replayed(self) -> bool:
        """Nothing was computed for it, and none of its tokens was charged."""
        return self.cache in REPLAYED

    @property
    def day(self) -> date:
        return self.started_at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """One day's usage of one layer: the arguments of `Ledger.restore`, in their order.

    `name` is "" for the account, else the key's id, the model (one row for `name` over all versions, one for
    each `name@version`) or the feature. `tokens` are prompt and completion together.
    """

    account_id: str
    level: Level
    name: str
    day: date
    requests: int
    tokens: int


class UsageDimension(StrEnum):
    """What usage can be grouped by."""

    ACCOUNT = "account"
    KEY = "key"
    MODEL = "model"
    FEATURE = "feature"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Usage summed over one group. A field that was not grouped by is None."""

    account_id: str | None
    key_id: str | None
    model: str | None
    version: str | None
    feature: str | None
    day: date | None
    requests: int
    prompt_tokens: int  # computed, as the next two: those that were charged
    cached_tokens: int
    completion_tokens: int
    replayed_prompt_tokens: int = 0  # of answers from the response cache, charged to nobody
    replayed_completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    account_id: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: datetime
    expires_at: datetime | None  # None: it is kept until it is deleted


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"  # its file can't be run
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"  # its files are being written
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (self.FAILED, self.COMPLETED, self.EXPIRED, self.CANCELLED)


@dataclass(frozen=True, slots=True)
class LineResult:
    """One line of a batch that has run. `output` is what a file will have of it; the tokens are those of its usage."""

    line: int
    is_error: bool
    output: bytes
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StoredBatch:
    id: str
    account_id: str
    key_id: str
    endpoint: str
    input_file_id: str
    model: str | None  # of all lines, if they have one in common
    status: BatchStatus
    labels: Mapping[str, str] | None  # the client's metadata
    output_seconds: int | None  # that its files are kept
    errors: Sequence[Mapping[str, Any]] | None  # code, message, param, line
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None


def utc_now() -> datetime:
    return datetime.now(UTC)
