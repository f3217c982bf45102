"""What a model allows, and what holds where a request is silent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


def _default(low: float, high: float) -> Any:
    return field(default=None, metadata={"low": low, "high": high})


@dataclass(slots=True, frozen=True)
class SamplingDefaults:
    """A model's own `generation_config.json`: what holds where the request is silent. None: the model is silent too."""

    temperature: float | None = _default(0, 100)
    top_p: float | None = _default(0, 1)
    top_k: int | None = _default(0, 2**31 - 1)
    min_p: float | None = _default(0, 1)
    repetition_penalty: float | None = _default(1e-3, 100)

    @classmethod
    def load(cls, folder: Path) -> SamplingDefaults:
        """Read a model folder. A missing or broken file, or a value that makes no sense, counts as silence."""
        try:
            raw = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return cls()
        return cls.parse(raw) if isinstance(raw, dict) else cls()

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> SamplingDefaults:
        """From the parsed file. `do_sample: false` is temperature 0, whatever temperature stands beside it."""
        known = {f.name: raw[f.name] for f in fields(cls) if _sensible(raw.get(f.name), f.metadata)}
        if "top_k" in known:
            known["top_k"] = int(known["top_k"])
        if raw.get("do_sample") is False:
            known["temperature"] = 0.0
        return cls(**known)

    def only(self, carried: frozenset[str] | None) -> SamplingDefaults:
        """Those that the engine carries out; None: all."""
        return self if carried is None else SamplingDefaults(**{k: v for k, v in asdict(self).items() if k in carried})


def _sensible(value: object, bounds: Mapping[str, Any]) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return bool(bounds["low"] <= value <= bounds["high"])  # false for NaN


@dataclass(slots=True, frozen=True)
class ModelLimits:
    """What one deployment's model allows, and its defaults."""

    context: int  # tokens of prompt and answer together
    vocab_size: int
    max_tokens_default: int
    eos_token_ids: frozenset[int] = frozenset()
    defaults: SamplingDefaults = SamplingDefaults()
    sampling: frozenset[str] | None = None  # the parameters that its engine carries out; None: all
    takes_grammars: bool = False  # whether its answers can be held to a grammar
    tells_logprobs: bool = False  # whether its engine says how likely tokens are
