"""Structured logs: one JSON object a line, of gateways and workers alike. Never a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

OUR_LOGGERS = ("penstock", "server", "batching", "engines", "quota")


class JsonFormatter(logging.Formatter):
    """`extra={"fields": {...}}` adds keys to the line, `fields` to every line."""

    def __init__(self, **fields: object) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= self._fields
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, **fields: object) -> None:
    """Everything that this process logs goes to standard error as JSON.

    `level` is ours. Libraries say no more than warnings: at lower levels they show what they are given, the texts that
    a database is to store among it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(**fields))
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(ours, logging.WARNING), handlers=[handler], force=True)
    for room in OUR_LOGGERS:
        logging.getLogger(room).setLevel(ours)
