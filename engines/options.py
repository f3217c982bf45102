"""`options` of a model: what is for its kind of engine alone."""

from __future__ import annotations

from typing import Any, TypeVar

from engines.base import EngineError

Options = TypeVar("Options")


def read_positive_integers(kind: type[Options], options: dict[str, Any], engine: str) -> Options:
    """`options` as the dataclass `kind`. Raises EngineError for an unknown name or what is no positive integer."""
    names = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for name, value in options.items():
        if name not in names:
            raise EngineError(f"options.{name}: unknown; the {engine} engine knows {', '.join(names)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EngineError(f"options.{name}: expected a positive integer, got {value!r}")
    return kind(**options)
