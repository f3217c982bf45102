"""Input files of batches, and what is in their outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import openai
from openai.types import Batch

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


def chat_line(custom_id: str, prompt: str = "hello", model: str = "echo", **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def begin(sdk: openai.OpenAI, lines: Iterable[dict[str, Any] | str], endpoint: Any = CHAT, **fields: Any) -> Batch:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    file = sdk.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


def wait(sdk: openai.OpenAI, batch: Batch, until: Iterable[str] = OVER, patience: float = 60) -> Batch:
    deadline = time.monotonic() + patience
    while (found := sdk.batches.retrieve(batch.id)).status not in until:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def wait_for_lines(sdk: openai.OpenAI, batch: Batch, count: int, patience: float = 60) -> Batch:
    """Until so many have run."""
    deadline = time.monotonic() + patience
    while True:
        found = sdk.batches.retrieve(batch.id)
        assert found.request_counts is not None
        if found.request_counts.completed >= count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def output(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(line) for line in sdk.files.content(file_id).text.splitlines()]


def counts(batch: Batch) -> tuple[int, int, int]:
    """All, completed, failed."""
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed
