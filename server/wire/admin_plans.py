"""Plans and limits in the admin API, written as in the configuration file."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from quota.levels import LimitError, Plan
from server.errors import InvalidRequest
from server.plans import Source
from server.wire.admin import AdminModel, ModelName
from server.wire.usage import StandingView, View

MAX_PLAN_NAME = 64


class PlanTables(AdminModel):
    """A plan's tables: `account` and `key` are tables of limits, `models` and `features` such tables by name.

    A table of limits: {"rpm": 60, "tokens_per_day": 5000000, "shadow": ["rpm"]}. What is not named is unlimited.
    """

    account: dict[str, Any] = Field(default_factory=dict)
    key: dict[str, Any] = Field(default_factory=dict)
    models: dict[ModelName, Any] = Field(default_factory=dict)
    features: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        self.tables()
        return self

    def tables(self) -> dict[str, Any]:
        """As they are stored. Raises InvalidRequest, which names the key's path."""
        try:
            return Plan.parse("body", dict(self)).tables()
        except LimitError as error:
            path, _, expected = str(error).replace("quota.plans.body.", "").partition(": ")
            raise InvalidRequest(f"Invalid value for '{path}': {expected}.", param=path) from None


class PlanView(View):
    object: Literal["plan"] = "plan"
    name: str
    source: Source
    updated_at: datetime | None  # null for the file's
    account: Mapping[str, Any] = Field(default_factory=dict)
    key: Mapping[str, Any] = Field(default_factory=dict)
    models: Mapping[str, Any] = Field(default_factory=dict)
    features: Mapping[str, Any] = Field(default_factory=dict)


class DeletedPlan(View):
    """`in_force` is what this name means from now on: the file's plan, or null."""

    object: Literal["plan"] = "plan"
    name: str
    deleted: Literal[True] = True
    in_force: PlanView | None


class LimitsView(View):
    """An account's limits. `effective` are the plan's tables with the overrides over them, and `limits` says how each
    one of them stands: the account's, those of each valid key, of models, of features."""

    object: Literal["limits"] = "limits"
    account: str  # its name
    account_id: str
    plan: str
    overrides: Mapping[str, Any]
    effective: Mapping[str, Any]
    limits: Sequence[StandingView]


def check_plan_name(name: str) -> str:
    """Raises InvalidRequest."""
    if not 0 < len(name) <= MAX_PLAN_NAME or not name.isprintable():
        raise InvalidRequest(f"Expected a name of 1 to {MAX_PLAN_NAME} visible characters.", param="name")
    return name
