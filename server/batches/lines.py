"""The input of a batch: its lines, and what is wrong with them. Plain values in, plain values out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from server.errors import APIError
from server.wire.batches import BatchError

MAX_LINES = 50_000
MAX_ERRORS = 100  # that a batch tells of
MAX_CUSTOM_ID = 512
WITHOUT_MODEL = "/v1/moderations"  # its requests need not name one


class InputLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    model: str | None = None
    stream: bool | None = None


@dataclass(slots=True, frozen=True)
class Line:
    number: int  # from 1
    text: bytes


async def split(chunks: AsyncIterator[bytes], longest: int) -> AsyncIterator[list[Line]]:
    """The lines that each chunk completes, without those that are blank. One that is longer than `longest` bytes comes
    with as many and one more."""
    rest, number = b"", 0
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        lines = [Line(number + i, text[: longest + 1]) for i, text in enumerate(whole, start=1)]
        number += len(whole)
        rest = rest[: longest + 1]  # what is too long need not be kept
        yield [line for line in lines if line.text.strip()]
    if rest.strip():
        yield [Line(number + 1, rest)]


def parse(line: Line) -> InputLine:
    """Raises msgspec.MsgspecError for what is no line of a batch."""
    return msgspec.json.decode(line.text, type=InputLine)


@dataclass(slots=True)
class Validation:
    """What is found out about a batch's lines, one after the other. `check_model` raises APIError for a model that
    the batch's key can't use."""

    endpoint: str
    longest: int
    check_model: Callable[[str], object]
    num_lines: int = 0
    errors: list[BatchError] = field(default_factory=list)
    _custom_ids: set[str] = field(default_factory=set)
    _models: set[str] = field(default_factory=set)

    @property
    def model(self) -> str | None:
        """That all lines have in common."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    @property
    def is_hopeless(self) -> bool:
        return len(self.errors) >= MAX_ERRORS or self.num_lines > MAX_LINES

    def add_all(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        self.num_lines += 1
        if self.num_lines > MAX_LINES:
            self._complain(None, "too_many_requests", f"The file has more than {MAX_LINES} requests.")
        elif len(line.text) > self.longest:
            self._complain(line, "line_too_long", f"A request may have at most {self.longest} bytes.")
        else:
            self._check(line)

    def finish(self) -> None:
        if not self.num_lines:
            self._complain(None, "empty_file", "The input file is empty: a batch needs at least one request.")

    def _check(self, line: Line) -> None:
        try:
            request = parse(line)
            body = msgspec.json.decode(request.body, type=_Body)
        except msgspec.ValidationError as error:
            self._complain(line, "invalid_request", f"This line is no request of a batch: {str(error)[:200]}.")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._complain(line, "invalid_json_line", "This line is not parseable as valid JSON.")
        else:
            self._check_envelope(line, request)
            self._check_body(line, body)

    def _check_envelope(self, line: Line, request: InputLine) -> None:
        if not 0 < len(request.custom_id) <= MAX_CUSTOM_ID:
            self._complain(line, "invalid_custom_id", f"Expected 1 to {MAX_CUSTOM_ID} characters.", "custom_id")
        elif request.custom_id in self._custom_ids:
            self._complain(line, "duplicate_custom_id", "The custom_id of another line.", "custom_id")
        self._custom_ids.add(request.custom_id)
        if request.method != "POST":
            self._complain(line, "invalid_method", "Expected POST.", "method")
        if request.url != self.endpoint:
            self._complain(line, "invalid_url", f"Expected the batch's endpoint, {self.endpoint}.", "url")

    def _check_body(self, line: Line, body: _Body) -> None:
        if body.stream:
            self._complain(line, "unsupported_parameter", "A batch can't stream.", "body.stream")
        if body.model is None:
            if self.endpoint != WITHOUT_MODEL:
                self._complain(line, "missing_required_parameter", "Expected a model.", "body.model")
            return
        if body.model in self._models:
            return
        try:
            if self.endpoint != WITHOUT_MODEL:
                self.check_model(body.model)
        except APIError as error:
            self._complain(line, error.code or error.type, error.message, "body.model")
        else:
            self._models.add(body.model)

    def _complain(self, line: Line | None, code: str, message: str, param: str | None = None) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(BatchError(code, message, param, line.number if line else None))
