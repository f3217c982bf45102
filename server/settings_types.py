"""The types of the settings' values: what each accepts, and the words for what it does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from server.settings_layers import shown, value_error
from server.text.content_filter import CATEGORIES
from server.text.pii.kinds import Kind

HOST_PORT = r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"


def _starts_with(*schemes: str) -> AfterValidator:
    def check(url: str) -> str:
        if url and not url.startswith(schemes):
            raise value_error(f"expected a URL that starts with {' or '.join(schemes)}")
        return url

    return AfterValidator(check)


def _made_of(characters: str, words: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(f"[{characters}]+", text):
            raise value_error(f"expected {words}, got {shown(text)}")
        return text

    return AfterValidator(check)


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    def check(text: str) -> str:
        if text not in names:
            raise value_error(f"expected one of {', '.join(names)}, got {shown(text)}")
        return text

    return AfterValidator(check)


def _pattern_name() -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch("[a-z][a-z0-9_]{0,31}", text) or text in (*Kind, "text"):
            raise value_error(f"expected a name of its own, in small letters, digits and _, got {shown(text)}")
        return text

    return AfterValidator(check)


def _empty_or(pattern: str, words: str) -> AfterValidator:
    def check(text: str) -> str:
        if text and not re.fullmatch(pattern, text):
            raise value_error(f"expected {words}, got {shown(text)}")
        return text

    return AfterValidator(check)


def _each(pattern: str, words: str) -> AfterValidator:
    def check(texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not re.fullmatch(pattern, text):
                raise value_error(f"expected {words}, got {shown(text)}")
        return texts

    return AfterValidator(check)


def _split(value: object) -> object:
    """A list may be written as one text with commas, as flags and variables are."""
    return [part.strip() for part in value.split(",") if part] if isinstance(value, str) else value


def _expanded(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError:
        raise value_error("no home folder is known for ~") from None


Name = Annotated[str, _made_of("A-Za-z0-9._/-", "letters, digits and . _ - /")]
Version = Annotated[str, _made_of("A-Za-z0-9._-", "letters, digits and . _ -")]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Text = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]  # TOML's arrays are lists
DatabaseURL = Annotated[str, _starts_with("postgresql+psycopg://", "sqlite+aiosqlite:///")]
HostPorts = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_split), _each(HOST_PORT, "HOST:PORT")]
TritonVersion = Annotated[str, _empty_or("[0-9]+", 'one of Triton\'s own, an integer such as "1"')]
DataDir = Annotated[Path, Field(strict=False), AfterValidator(_expanded)]
RedisURL = Annotated[str, _starts_with("redis://", "rediss://", "unix://")]
TraceURL = Annotated[str, _starts_with("http://", "https://")]
Category = Annotated[str, _one_of(CATEGORIES)]
PiiKinds = Annotated[tuple[Annotated[str, _one_of(tuple(Kind))], ...], Field(strict=False)]
PatternName = Annotated[str, _pattern_name()]
