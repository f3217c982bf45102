"""The small files around a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.base import EngineError


def read_json(file: Path, kind: type = dict) -> Any:
    """A JSON object, or a list with `kind` list; empty without the file. Raises EngineError."""
    if not file.is_file():
        return kind()
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise EngineError(f"{file}: expected a JSON {'list' if kind is list else 'object'}")
    return value
