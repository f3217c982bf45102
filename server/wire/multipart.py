"""`multipart/form-data` (RFC 7578), read while it arrives: a file of any size never stands in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 16

T = TypeVar("T")


@dataclass(slots=True, frozen=True, eq=False)
class Part:
    """`filename` is the client's own word, as it stands: nobody may use it as a path."""

    name: str
    filename: str | None


@dataclass(slots=True, frozen=True)
class Piece:
    """Some of a part's bytes; none where a part begins."""

    part: Part
    data: bytes


class MultipartReader:
    """Fed with a body as it comes. Raises InvalidRequest for one that is no form."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest("Expected a body of the type multipart/form-data, with its boundary.")
        self._pieces: list[Piece] = []
        self._part: Part | None = None
        self._num_parts = 0
        self._ended = False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""
        self._parser = _guarded(lambda: MultipartParser(boundary, self._callbacks()))

    def feed(self, data: bytes) -> list[Piece]:
        self._pieces = []
        _guarded(lambda: self._parser.write(data))
        return self._pieces

    def finish(self) -> None:
        if not self._ended:
            raise InvalidRequest("The form ends before its last boundary.")

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if (name := options.get(b"name")) is None:
            raise InvalidRequest("A part of the form has no name in its Content-Disposition.")
        filename = options.get(b"filename")
        self._part = Part(_text(name), None if filename is None else _text(filename))
        self._pieces.append(Piece(self._part, b""))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self._pieces.append(Piece(self._part, data[start:end]))

    def _on_end(self) -> None:
        self._ended = True


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except FormParserError:
        raise InvalidRequest("The body is no valid multipart/form-data.") from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
