"""What a gateway logs of its requests. Never a prompt, an answer or a key."""

from __future__ import annotations

import logging
from typing import Any

from batching import logs

requests = logging.getLogger("penstock.request")


def configure(level: str, **fields: object) -> None:
    """`fields` are added to every line."""
    logs.configure(level, **fields)
    for library in ("httpx", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # It warns of every attempt, and then tells of the failure.
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its line of a WebSocket shows the query string


def request_finished(fields: dict[str, Any]) -> None:
    """One that was admitted, however it ended."""
    requests.info("request finished", extra={"fields": fields})


def request_refused(fields: dict[str, Any]) -> None:
    """One that was not."""
    requests.info("request refused", extra={"fields": fields})


def unexpected(what: str) -> None:
    """An error of ours, with its traceback. Called while it is being handled."""
    logging.getLogger("penstock.server").exception(what)
