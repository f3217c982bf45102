"""What takes OTLP's traces over HTTP, and keeps them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE = 30.0  # seconds; spans leave in batches


@dataclass(slots=True, frozen=True)
class Event:
    name: str
    attributes: dict[str, Any]


@dataclass(slots=True, frozen=True)
class Span:
    """Times in nanoseconds since 1970; ids in hexadecimal, "" for no parent."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    is_error: bool
    attributes: dict[str, Any]
    events: list[Event]


@dataclass(slots=True)
class Collector:
    """On a free port of this machine, while it is entered."""

    spans: list[Span] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    raw: bytearray = field(default_factory=bytearray)  # all that was sent, headers too
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.raw += str(self.headers).encode() + body
                collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Who sends from now on is refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for sent in request.resource_spans:
            self.resource = _attributes(sent.resource.attributes)
            self.spans += [_span(span) for scope in sent.scope_spans for span in scope.spans]

    def wait_for(self, is_it: Callable[[Span], bool], count: int = 1) -> list[Span]:
        """Until there are so many."""
        deadline = time.monotonic() + PATIENCE
        while len(found := [span for span in list(self.spans) if is_it(span)]) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count}: {[span.name for span in self.spans[-20:]]}"
            time.sleep(0.05)
        return found


def _span(span: Any) -> Span:
    return Span(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        _attributes(span.attributes),
        [Event(event.name, _attributes(event.attributes)) for event in span.events],
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(part) for part in value.array_value.values]
    return getattr(value, kind)
