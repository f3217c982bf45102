"""Usage and limits as answers show them: `/v1/usage`, and what the admin API has in common with it."""

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from quota.levels import Dimension, Level
from server.store.records import UsageDimension


class View(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


AnyView = TypeVar("AnyView", bound=BaseModel)


class Page(View, Generic[AnyView]):
    """`has_more`: more than `limit`. For accounts and keys, ask again with `after` set to the last id."""

    object: Literal["list"] = "list"
    data: Sequence[AnyView]
    has_more: bool


def page(views: Sequence[AnyView], limit: int) -> Page[AnyView]:
    """`views` has one more than a page if there is more."""
    return Page[AnyView](data=views[:limit], has_more=len(views) > limit)


class UsageGroup(View):
    """One group: what was not grouped by is null. Grouped by feature, a request counts in each one that it used."""

    object: Literal["usage"] = "usage"
    key_id: str | None
    model: str | None
    version: str | None
    feature: str | None
    day: date | None
    requests: int
    prompt_tokens: int
    cached_tokens: int  # of the prompt
    completion_tokens: int
    replayed_prompt_tokens: int  # of answers from the response cache: they count in no limit of tokens
    replayed_completion_tokens: int


class StandingView(View):
    """How one limit stands: `quota.standing.Standing`."""

    level: Level
    name: str  # "" for the account, else the key's id, the model or the feature
    dimension: Dimension
    limit: int
    used: int  # in requests or tokens, reservations included
    remaining: int
    reset_ms: int | None  # until the limit is whole again, if nothing else comes; null: when running requests end
    shadow: bool  # it refuses nothing


class AccountUsage(Page[UsageGroup]):
    """What the caller's account used, and how its limits stand for the caller's key. Usage is up to half a second
    behind; the limits are not, and they include what is reserved for requests that still run."""

    account: str  # its name
    plan: str
    limits: Sequence[StandingView]


def _split(names: object) -> object:
    return names.split(",") if isinstance(names, str) else names


def _once(names: tuple[UsageDimension, ...]) -> tuple[UsageDimension, ...]:
    if len(set(names)) != len(names):
        raise ValueError("each name may stand once")
    return names


OwnDimension = Literal[UsageDimension.KEY, UsageDimension.MODEL, UsageDimension.FEATURE, UsageDimension.DAY]
_SPLIT = BeforeValidator(_split, json_schema_input_type=str)
AnyGroups = Annotated[tuple[UsageDimension, ...], _SPLIT, AfterValidator(_once)]
OwnGroups = Annotated[tuple[OwnDimension, ...], _SPLIT, AfterValidator(_once)]


class UsagePeriod(BaseModel):
    """A query string's values are text: not strict. Days are UTC, `until` is included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: date | None = None
    until: date | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000


class AccountUsageQuery(UsagePeriod):
    """`group_by`: names separated by commas."""

    group_by: OwnGroups = (UsageDimension.MODEL,)
