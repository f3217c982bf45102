"""From `penstock triton-repo` by tritonserver to OpenAI's own client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from engines.fake_tokens import fake_answer
from server.settings_models import BUNDLED_FOLDER
from tests.byte_tokenizer import write_byte_tokenizer
from tests.clients import expected_text
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.triton_server import TritonServer

pytestmark = pytest.mark.triton

ENDLESS = 4000


@pytest.fixture(scope="module")
def server(hosting_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    tokenizer = write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))
    config = f"""
[[models]]
name = "m"
engine = "triton"
url = "{hosting_triton.url}"
tokenizer = "{tokenizer}"

[[models]]
name = "tiny-chat"
triton_model = "chat"
engine = "triton"
url = "{hosting_triton.url}"
tokenizer = "{BUNDLED_FOLDER}"
"""
    with PenstockProcess(tmp_path_factory.mktemp("gateway-of-hosts"), config + UNLIMITED) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: PenstockProcess) -> Iterator[openai.OpenAI]:
    with server.sdk() as client:
        yield client


def chat(client: openai.OpenAI, model: str, prompt: str, max_tokens: int = 12, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, **fields)


def test_an_answer_and_its_usage(client: openai.OpenAI) -> None:
    answer = chat(client, "m", "hello")
    assert answer.choices[0].message.content == expected_text("hello", 12)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)


def test_sixty_four_streams(client: openai.OpenAI) -> None:
    def stream(i: int) -> str:
        chunks = chat(client, "m", f"hello {i}", 50, stream=True)
        return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(stream, range(64)))
    assert answers == [bytes(fake_answer(list(f"hello {i}".encode()), 50)).decode() for i in range(64)]


def test_the_bundled_model(client: openai.OpenAI) -> None:
    answer = chat(client, "tiny-chat", "What is a quota?", 60, temperature=0)
    assert "requests per minute" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


async def test_a_disconnect_stops_the_work(server: PenstockProcess, client: openai.OpenAI) -> None:
    with chat(client, "m", "hello", ENDLESS, stream=True) as running:
        for _ in range(3):
            next(running)
    await asyncio.to_thread(server.wait_for_metric, "penstock_requests_running", 0)
