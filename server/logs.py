"""What a gateway logs of its requests. Never a prompt, an answer or a key."""

from __future__ import annotations

import logging
from typing import Any

from batching import logs

requests = logging.getLogger("penstock.request")


def configure(level: str, **fields: object) -> None:
    """`fields` are added to every line."""
    logs.configure(level, **fields)
    # The first warns of every attempt, and then tells of the failure; the second of every form that a client got wrong.
    for library in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "python_multipart"):
        logging.getLogger(library).setLevel(logging.ERROR)


def request_finished(fields: dict[str, Any]) -> None:
    """One that was admitted, however it ended."""
    requests.info("request finished", extra={"fields": fields})


def request_refused(fields: dict[str, Any]) -> None:
    """One that was not."""
    requests.info("request refused", extra={"fields": fields})


def unexpected(what: str) -> None:
    """An error of ours, with its traceback. Called while it is being handled."""
    logging.getLogger("penstock.server").exception(what)
