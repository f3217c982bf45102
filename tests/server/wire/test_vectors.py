"""The requests for vectors, moderations and tokens know every field of the SDK."""

from __future__ import annotations

from openai.types import EmbeddingCreateParams, ModerationCreateParams

from server.text.content_filter import CATEGORIES
from server.wire.embeddings import EmbeddingRequest
from server.wire.moderations import ModerationRequest


def test_every_field_of_the_sdk_is_known() -> None:
    assert set(EmbeddingRequest.model_fields) == set(EmbeddingCreateParams.__annotations__) | {"priority"}
    assert set(ModerationRequest.model_fields) == set(ModerationCreateParams.__annotations__)


def test_every_category_of_the_sdk_is_there() -> None:
    from openai.types.moderation import Categories

    assert set(CATEGORIES) == {field.alias or name for name, field in Categories.model_fields.items()}
