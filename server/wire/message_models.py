"""`/v1/models` as Anthropic's clients read it, page by page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from server.errors import InvalidRequest

Cursor = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ModelsQuery(BaseModel):
    """A query string's values are text: not strict."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    WHERE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("limit", "after_id", "before_id"), "`anthropic-version` is sent, without which no query is read"
    )

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    after_id: Cursor | None = None
    before_id: Cursor | None = None

    @model_validator(mode="after")
    def _one_cursor(self) -> Self:
        if self.after_id is not None and self.before_id is not None:
            raise InvalidRequest("'after_id' and 'before_id' exclude each other.", param="before_id")
        return self


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="model"):
    id: str
    display_name: str
    created_at: datetime
    lifecycle: str = "active"
    max_input_tokens: int
    max_tokens: int


class ModelPage(msgspec.Struct, frozen=True):
    data: Sequence[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_info(name: str, model: str, created: int, context: int) -> ModelInfo:
    """`name` is what may be asked for, `model` what that is; `created` is Unix seconds, `context` tokens."""
    moment = datetime.fromtimestamp(created, UTC)
    return ModelInfo(id=name, display_name=model, created_at=moment, max_input_tokens=context, max_tokens=context)


def model_page(models: Sequence[ModelInfo], query: ModelsQuery) -> ModelPage:
    """Raises InvalidRequest for a cursor that is no model's id."""
    start, end = 0, len(models)
    if query.after_id is not None:
        start = _place(models, query.after_id, "after_id") + 1
    if query.before_id is not None:
        end = _place(models, query.before_id, "before_id")
        start = max(0, end - query.limit)
    data = models[start:end][: query.limit]
    has_more = start > 0 if query.before_id is not None else start + len(data) < end
    return ModelPage(data, has_more, data[0].id if data else None, data[-1].id if data else None)


def _place(models: Sequence[ModelInfo], cursor: str, param: str) -> int:
    for place, model in enumerate(models):
        if model.id == cursor:
            return place
    raise InvalidRequest(f"'{param}' is not the id of a model.", param=param)
