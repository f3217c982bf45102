"""Settings as one process hands them to another: JSON, secrets included. It is never logged, nor an argument."""

from __future__ import annotations

import json

from pydantic import TypeAdapter

from server.settings import Settings

_adapter = TypeAdapter(Settings)


def dump(settings: Settings) -> str:
    """ASCII: a path may hold bytes that are no UTF-8."""
    return json.dumps(_adapter.dump_python(settings, mode="json"))


def load(text: str) -> Settings:
    return _adapter.validate_python(json.loads(text))
