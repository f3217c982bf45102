"""How the sources of the configuration are laid over each other, and how an error names the one at fault."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails, PydanticCustomError

PREFIX = "PENSTOCK_"
Loc = tuple[int | str, ...]


class SettingsError(Exception):
    """The configuration can't be used. The message is one line: where, which key, what was expected."""


class Problem(Exception):
    """What is wrong with the value at `loc`; the layers know where that value comes from."""

    def __init__(self, loc: Loc, text: str) -> None:
        super().__init__(text)
        self.loc, self.text = loc, text


def at_key(key: str, text: str) -> PydanticCustomError:
    """For a model's validator: the error belongs to one of its keys."""
    return PydanticCustomError("key", "{text}", {"key": key, "text": text})


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    except (UnicodeDecodeError, RecursionError):
        raise SettingsError(f"{path}: expected a TOML file in UTF-8") from None


class Variables:
    """The PENSTOCK_ variables of an environment, by name without the prefix.

    Raises SettingsError for a misspelt one.
    """

    def __init__(self, environ: Mapping[str, str], known: Iterable[str]) -> None:
        ours = {name.removeprefix(PREFIX): value for name, value in environ.items() if name.startswith(PREFIX)}
        ours = {name: value for name, value in ours.items() if value and not _is_kubernetes(name, value)}
        self._values = {name: ours.pop(name) for name in known if name in ours}
        self.warnings = tuple(self._unknown(name, known) for name in sorted(ours))

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    @staticmethod
    def _unknown(name: str, known: Iterable[str]) -> str:
        # The environment is not ours alone, so an unknown name is only a warning; a near miss is a mistake.
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise SettingsError(f"{PREFIX}{name}: unknown variable, did you mean {PREFIX}{close[0]}?")
        return f"{PREFIX}{name}: unknown variable, not used"


def _is_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes sets this for a Service called penstock, or penstock-… .

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    pattern = r"([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    address = name.endswith("PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
    return address or re.fullmatch(pattern, name) is not None


class Layers:
    """The file's tables with the upper layers put over them: `raw` is what gets validated."""

    def __init__(self, raw: dict[str, Any], label: str) -> None:
        self.raw = raw
        self.label = label
        self._labels: dict[Loc, str] = {}

    def put(self, loc: Loc, value: object, label: str) -> None:
        """Set the value at `loc`, which `label` (a flag or a variable) is to be blamed for from now on."""
        table: Any = self.raw
        for key in loc[:-1]:
            table = table[key] if isinstance(key, int) else table.setdefault(key, {})
            if not isinstance(table, dict | list):
                break
        if isinstance(table, dict):  # else the file has no table here, as validation will say
            table[str(loc[-1])] = value
            self._labels[loc] = label

    def default(self, section: str, key: str, value: object) -> None:
        """Set the value where no layer has one."""
        table = self.raw.setdefault(section, {})
        if isinstance(table, dict):
            table.setdefault(key, value)

    def blame(self, loc: Loc, label: str) -> None:
        self._labels[loc] = label

    def place(self, loc: Loc) -> str:
        """Where the value at `loc` comes from: `--port`, `PENSTOCK_PORT` or `file: server.port`."""
        for length in range(len(loc), 0, -1):
            if label := self._labels.get(loc[:length]):
                return ": ".join(filter(None, (label, key_path(loc[length:]))))
        return f"{self.label}: {key_path(loc)}"

    def describe(self, error: ErrorDetails, schema: type[BaseModel]) -> str:
        """One line for a validation error of `raw` against `schema`."""
        loc = tuple(part for part in error["loc"] if part != "[key]")
        context = error.get("ctx", {})
        match error["type"]:
            case "extra_forbidden":
                return f"{self.place(loc)}: unknown key, {_suggestion(str(loc[-1]), _keys_at(schema, loc))}"
            case "missing":
                return f"{self.place(loc)}: required"
            case "key":
                return f"{self.place((*loc, context['key']))}: {context['text']}"
            case "value":
                return f"{self.place(loc)}: {error['msg']}"
        return f"{self.place(loc)}: {_expected(error['msg'])}, got {shown(error['input'])}"


def value_error(text: str) -> PydanticCustomError:
    """For a value's validator: `text` says what was expected; the value itself is not shown."""
    return PydanticCustomError("value", "{text}", {"text": text})


def key_path(loc: Loc) -> str:
    """As a reader of TOML would write it: `models[0].engine`, `routing.aliases."gpt 4"`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if re.fullmatch("[A-Za-z0-9_-]+", part) else json.dumps(part))
    return text


def shown(value: object) -> str:
    """A value as its file shows it, on one line of bounded length."""
    return json.dumps(value, default=str)[:80]


def _expected(message: str) -> str:
    """Pydantic's sentence in TOML's words: "Input should be a valid dictionary" -> "expected a valid table"."""
    message = re.sub(r", (got|unable to|not) .*| after validation.*", "", message)
    message = re.sub(r"dictionary( or instance of \w+)?", "table", message).replace("tuple", "list")
    return re.sub(r"^\w+ should (be |have )?", "expected ", message)


def _suggestion(key: str, known: list[str]) -> str:
    if close := difflib.get_close_matches(key, known, n=1):
        return f'did you mean "{close[0]}"?'
    return f"expected one of {', '.join(known)}"


def _keys_at(schema: type[BaseModel], loc: Loc) -> list[str]:
    """The keys of the table that `loc`'s last part stands in."""
    for part in loc[:-1]:
        if isinstance(part, str) and part in schema.model_fields:
            schema = _table_type(schema.model_fields[part].annotation) or schema
    return list(schema.model_fields)


def _table_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _table_type(part))), None)
