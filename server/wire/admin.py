"""The admin API's bodies and answers. Limits and plans are written as in the configuration file."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from quota.levels import FEATURES, LimitError, Limits, Plan
from server.store.accounts import DEFAULT_PLAN_NAME, check_name
from server.store.records import KeyKind, UsageDimension
from server.wire.usage import AnyGroups, UsageGroup, UsagePeriod

MAX_SCOPES = 256
LATEST_EXPIRY = datetime(9000, 1, 1, tzinfo=UTC)


def _check_name(name: str) -> str:
    check_name(name)
    return name


def _check_limits(limits: dict[str, Any]) -> dict[str, Any]:
    Limits.parse(limits, "limits")  # LimitError is a ValueError whose text is fit for the client
    return limits


def _check_overrides(overrides: dict[str, Any]) -> dict[str, Any]:
    try:
        Plan.parse("overrides", overrides)
    except LimitError as error:
        raise ValueError(str(error).replace("quota.plans.overrides", "overrides")) from None
    return overrides


def _check_features(features: frozenset[str]) -> frozenset[str]:
    if not features <= FEATURES:
        raise ValueError(f"expected some of {', '.join(sorted(FEATURES))}")
    return features


Visible = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
PlanName = Annotated[Visible, Field(min_length=1, max_length=64)]
AccountReference = Annotated[Visible, Field(min_length=1, max_length=64)]
"""An account's name or id."""
ModelName = Annotated[Visible, Field(min_length=1, max_length=256)]
Features = Annotated[frozenset[str], Field(max_length=MAX_SCOPES), AfterValidator(_check_features)]
LimitTable = Annotated[dict[str, Any], AfterValidator(_check_limits)]
Overrides = Annotated[dict[str, Any], AfterValidator(_check_overrides)]


class AdminModel(BaseModel):
    # strict: no "1" for 1; a JSON array is still a set, and a string a time, since both are read from JSON
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class CreateAccount(AdminModel):
    name: Annotated[str, AfterValidator(_check_name)]
    plan: PlanName = DEFAULT_PLAN_NAME
    overrides: Overrides | None = None


class ChangeAccount(AdminModel):
    """What is absent or null stays; `overrides` is replaced as a whole ({} removes them)."""

    plan: PlanName | None = None
    overrides: Overrides | None = None
    disabled: bool | None = None


class CreateKey(AdminModel):
    """`models` and `features` null: all that the creator's key holds."""

    account: AccountReference | None = None
    kind: KeyKind = KeyKind.API
    name: Annotated[Visible, Field(max_length=128)] = ""
    models: Annotated[frozenset[ModelName], Field(max_length=MAX_SCOPES)] | None = None
    features: Features | None = None
    limits: LimitTable | None = None
    expires_in_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    expires_at: AwareDatetime | None = None

    @field_validator("expires_at")
    @classmethod
    def _within_calendar(cls, moment: datetime | None) -> datetime | None:
        if moment is not None and moment > LATEST_EXPIRY:
            raise ValueError(f"expected a time before {LATEST_EXPIRY:%Y}, or null for never")
        return moment

    @model_validator(mode="after")
    def _one_expiry(self) -> Self:
        if self.expires_in_days is not None and self.expires_at is not None:
            raise ValueError("expires_in_days and expires_at exclude each other")
        return self

    def expiry(self, now: datetime) -> datetime | None:
        if self.expires_in_days is not None:
            return now + timedelta(days=self.expires_in_days)
        return None if self.expires_at is None else self.expires_at.astimezone(UTC)


class AccountView(AdminModel):
    object: Literal["account"] = "account"
    id: str
    name: str
    plan: str
    overrides: Mapping[str, Any]
    disabled: bool
    created_at: datetime


class KeyView(AdminModel):
    """A key as it may be shown: neither its text nor its digest."""

    object: Literal["key"] = "key"
    id: str
    account: str  # its name
    account_id: str
    kind: KeyKind
    name: str
    models: Sequence[str] | None
    features: Sequence[str] | None
    limits: Mapping[str, Any]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyView(KeyView):
    """`key` is shown here and never again."""

    key: str = Field(repr=False)


class UsageView(UsageGroup):
    account: str | None  # its name
    account_id: str | None


class PageQuery(BaseModel):
    """A query string's values are text: not strict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[Visible, Field(max_length=64)] | None = None


class KeysQuery(PageQuery):
    account: AccountReference | None = None


class UsageQuery(UsagePeriod):
    """`group_by`: names separated by commas. `account`, `key` (its id) and `model` (`name`, which is all its versions,
    or `name@version`) leave out what is not theirs."""

    group_by: AnyGroups = (UsageDimension.ACCOUNT,)
    account: AccountReference | None = None
    key: Annotated[Visible, Field(min_length=1, max_length=64)] | None = None
    model: ModelName | None = None
