"""The bundled model on two torch engines, one of which is killed: answers as if nothing had happened."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from server.settings import BUNDLED_FOLDER
from tests.penstock_process import UNLIMITED, PenstockProcess

CONFIG = f"""
[[models]]
name = "tiny-chat"
path = "{BUNDLED_FOLDER}"
dtype = "float32"
max_model_len = 512
replicas = 2
options = {{ threads = 1 }}
"""
PENALTIES = {"presence_penalty": 0.6, "frequency_penalty": 0.3}
GREEDY = {"temperature": 0, "max_tokens": 120, **PENALTIES, "extra_body": {"ignore_eos": True}}
SEEDED = {
    "temperature": 0.9,
    "seed": 20,
    "max_tokens": 120,
    "logit_bias": {"300": 3},
    "extra_body": {"repetition_penalty": 1.1, "min_tokens": 100, "top_k": 50},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("two-engines"), CONFIG + UNLIMITED) as running:
        yield running


Told = tuple[str, str | None, int]


def start(client: openai.OpenAI, **fields: Any) -> Iterator[Any]:
    """A stream that has begun."""
    messages: Any = [{"role": "user", "content": "Was ist eine Quote? Erklär es mit 水门."}]
    stream = client.chat.completions.create(
        model="tiny-chat", messages=messages, stream=True, stream_options={"include_usage": True}, **fields
    )
    begun = [next(stream) for _ in range(3)]
    return itertools.chain(begun, stream)


def read(stream: Iterator[Any]) -> Told:
    """Text, finish reason, completion tokens."""
    text, reason, usage = "", None, None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    assert usage is not None
    return text, reason, usage.completion_tokens


def test_answers_whose_engine_is_killed(server: PenstockProcess) -> None:
    """Of four, each engine has some: the replica with the least to do is asked."""
    with server.sdk() as client:
        greedy, seeded = read(start(client, **GREEDY)), read(start(client, **SEEDED))
        stop = seeded[0][-9:-3]
        stopped = seeded[0][: seeded[0].index(stop)], "stop"
        streams = [start(client, **fields) for fields in (GREEDY, SEEDED, SEEDED | {"stop": [stop]}, GREEDY)]
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        told = [read(stream) for stream in streams]
    assert [told[0], told[1], told[2][:2], told[3]] == [greedy, seeded, stopped, greedy]
    assert server.metric("penstock_failovers_total", outcome="continued") in (1, 2, 3)
