"""Server-sent events out of raw bytes (WHATWG HTML, section 9.2.6), without I/O."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SSEEvent:
    """One dispatched event; `name` is empty unless an `event:` field was sent."""

    data: bytes
    name: bytes = b""


class SSEParser:
    """Feed bytes as they arrive, cut anywhere; get the events they complete.

    Lines end in LF, CRLF or CR. Comments, `id` and `retry` are skipped. An event without its closing
    blank line is never dispatched, as the specification says, so a cut stream loses its torn tail.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._skip_lf = False  # the last chunk ended in CR: a leading LF belongs to it
        self._data: list[bytes] = []
        self._name = b""
        self._at_start = True

    def feed(self, chunk: bytes) -> list[SSEEvent]:
        events: list[SSEEvent] = []
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        """The complete lines so far, without their ends; keeps the torn one."""
        if not chunk:
            return []
        if self._skip_lf and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._skip_lf = chunk[-1:] == b"\r"
        text = self._tail + chunk
        lines = text.splitlines()  # bytes split on LF, CRLF and CR only, unlike str
        self._tail = lines.pop() if lines and text[-1:] not in b"\r\n" else b""
        if self._at_start and lines:
            self._at_start = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value

    def _dispatch(self) -> SSEEvent | None:
        data, name = self._data, self._name
        self._data, self._name = [], b""
        return SSEEvent(b"\n".join(data), name) if data else None
