"""The command that a server's start prints fits its first model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from engines.types import Task
from server.banner import banner
from server.settings import load
from server.store.credentials import GeneratedKeys
from server.wire.body import parse_json
from server.wire.chat import ChatCompletionRequest
from server.wire.common import RequestModel
from server.wire.embeddings import EmbeddingRequest
from server.wire.rerank import RerankRequest


@pytest.mark.parametrize(
    ("task", "path", "request_model"),
    [
        (Task.GENERATE, "chat/completions", ChatCompletionRequest),
        (Task.EMBED, "embeddings", EmbeddingRequest),
        (Task.SCORE, "rerank", RerankRequest),
    ],
)
def test_the_command_to_paste(tmp_path: Path, task: Task, path: str, request_model: type[RequestModel]) -> None:
    settings = load(None, {"data_dir": str(tmp_path)}, {"HOME": "/home/someone"})
    text = banner(settings, GeneratedKeys(None, "sk-1"), "http://h/v1", task, show_key=False)
    (line,) = [line for line in text.splitlines() if line.startswith("curl")]
    words = shlex.split(line)
    assert f"http://h/v1/{path}" in words
    body = parse_json(words[words.index("-d") + 1].encode(), request_model)
    assert json.loads(words[words.index("-d") + 1])["model"] == body.model == "tiny-chat"  # type: ignore[attr-defined]
