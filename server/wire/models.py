"""`/v1/models`: OpenAI's Model and list objects."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Model(msgspec.Struct, frozen=True):
    """A model that may be asked for. `id` is a `name`, a `name@version` or an alias; `created` is Unix seconds."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "penstock"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Model]


def model_list(models: Iterable[Model]) -> ModelList:
    return ModelList(data=list(models))
