"""The layer of models: the bundled one, MODEL arguments in the place of the file's, and what overrides every model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.settings_layers import PREFIX, Layers, Variables, key_path, shown

BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "models" / "tiny-chat"
BUNDLED_MODEL = {"name": "tiny-chat", "path": str(BUNDLED_FOLDER), "dtype": "float32", "max_model_len": 1024}
BUNDLED_ALIASES = ("gpt-4", "gpt-4o-mini", "gpt-3.5-turbo")
# Each overrides this key in every model.
MODEL_FLAGS = {
    "engine": "engine",
    "dtype": "dtype",
    "quantize": "quantize",
    "triton_url": "url",
    "tokenizer": "tokenizer",
    "task": "task",
}
HUB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?"  # of Hugging Face: org/name, or gpt2


def lay_models(layers: Layers, variables: Variables, overrides: Mapping[str, object]) -> list[str]:
    """Returns warnings."""
    chosen = _chosen(variables, overrides)

    def is_engine(kind: str) -> bool:
        return chosen.get("engine", ("", ""))[0] == kind

    arguments = overrides.get("models")
    warnings = []
    if isinstance(arguments, Sequence) and arguments:
        warnings = _replace_models(layers, arguments, is_triton=is_engine("triton"))
    elif "models" not in layers.raw:
        layers.raw["models"] = [_bundled(is_fake=is_engine("fake"))]
        layers.default("routing", "aliases", dict.fromkeys(BUNDLED_ALIASES, BUNDLED_MODEL["name"]))
    models = layers.raw["models"]
    for key, (value, label) in chosen.items():
        for i in range(len(models) if isinstance(models, list) else 0):
            layers.put(("models", i, key), value, label)
    return warnings


def models_from_arguments(arguments: Sequence[str], *, is_triton: bool = False) -> list[dict[str, object]]:
    """The MODEL arguments as tables of `[[models]]`: named after the folder, or after the last part of the id.

    To Triton they are its own names; the tokenizer is there or, if another flag says so, elsewhere.
    """
    key = "tokenizer" if is_triton else "path"
    return [{"name": model_name(argument), key: argument, "version": "1"} for argument in arguments]


def model_name(argument: str) -> str:
    """What a MODEL argument is called: its folder's name, or the last part of its id."""
    last = Path(argument).resolve().name if Path(argument).is_dir() else argument.rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last)


def _chosen(variables: Variables, overrides: Mapping[str, object]) -> dict[str, tuple[object, str]]:
    """What holds for every model, with the flag or variable that says so."""
    chosen: dict[str, tuple[object, str]] = {}
    for flag, key in MODEL_FLAGS.items():
        if (value := overrides.get(flag)) is not None:
            chosen[key] = value, "--" + flag.replace("_", "-")
        elif (text := variables.get(flag.upper())) is not None:
            chosen[key] = text, PREFIX + flag.upper()
    return chosen


def _bundled(*, is_fake: bool) -> dict[str, Any]:
    """The deterministic engine takes the model's name alone: its files would mean nothing to it."""
    return {"name": BUNDLED_MODEL["name"]} if is_fake else dict(BUNDLED_MODEL)


def _replace_models(layers: Layers, arguments: Sequence[str], *, is_triton: bool) -> list[str]:
    models = models_from_arguments(arguments, is_triton=is_triton)
    gone = _names(layers.raw.get("models", [BUNDLED_MODEL])) - _names(models)
    layers.raw["models"] = models
    for i, argument in enumerate(arguments):
        layers.blame(("models", i), f"MODEL {argument}")
    return [*_drop(layers, "aliases", gone), *_drop(layers, "default_versions", gone)]


def _names(models: object) -> set[str]:
    """What requests may call them. Not validated yet: what is no model has no name."""
    tables = [table for table in models if isinstance(table, dict)] if isinstance(models, list) else []
    named = [(str(table.get("name")), str(table.get("version", "1"))) for table in tables]
    return {name for name, _ in named} | {f"{name}@{version}" for name, version in named}


def _drop(layers: Layers, key: str, gone: set[str]) -> list[str]:
    """Leave out the entries of [routing] that mean a model which went away. Returns a warning each."""
    routing = layers.raw.get("routing")
    if not isinstance(routing, dict) or not isinstance(table := routing.get(key), dict):
        return []
    targets = {name: f"{name}@{value}" if key == "default_versions" else value for name, value in table.items()}
    dropped = [name for name, target in targets.items() if isinstance(target, str) and target in gone]
    routing[key] = {name: value for name, value in table.items() if name not in dropped}
    return [f"{key_path(('routing', key, name))}: not used, MODEL replaces {shown(targets[name])}" for name in dropped]
