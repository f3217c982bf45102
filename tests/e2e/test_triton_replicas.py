"""Two Tritons behind one model: what happens to answers when one of them dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from engines.fake_tokens import digest_prompt, fake_token
from tests.byte_tokenizer import write_byte_tokenizer
from tests.clients import expected_text, until
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.triton_models import TritonModel
from tests.triton_server import TritonServer, running_triton

pytestmark = pytest.mark.triton

MODELS = (
    TritonModel("ids", "tokens", delay_ms=10, max_batch_size=8),
    TritonModel("text", "vllm", delay_ms=20),
    TritonModel("slow", "vllm", delay_ms=1500),  # before its first token too
)
PROMPT = "!chain hello"
LONG = 150  # tokens


@pytest.fixture
def first(tmp_path: Path) -> Iterator[TritonServer]:
    """The one that an idle gateway asks."""
    yield from running_triton(tmp_path / "first", MODELS)


@pytest.fixture
def second(tmp_path: Path) -> Iterator[TritonServer]:
    yield from running_triton(tmp_path / "second", MODELS)


@pytest.fixture
def server(first: TritonServer, second: TritonServer, tmp_path: Path) -> Iterator[PenstockProcess]:
    tokenizer = write_byte_tokenizer(tmp_path)
    models = [
        f'[[models]]\nname = "{model.name}"\nengine = "triton"\nurl = ["{first.url}", "{second.url}"]\n'
        f'tokenizer = "{tokenizer}"\n'
        for model in MODELS
    ]
    with PenstockProcess(tmp_path, "".join(models) + UNLIMITED) as running:
        yield running


def chat(client: openai.OpenAI, model: str, prompt: str, max_tokens: int, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, **fields)


def chain(prompt: str, num_tokens: int) -> str:
    known = list(prompt.encode())
    for _ in range(num_tokens):
        known.append(fake_token(digest_prompt(known), 0))
    return bytes(known[len(prompt) :]).decode()


async def test_a_server_that_dies_with_another_one_beside_it(server: PenstockProcess, first: TritonServer) -> None:
    """Greedy token ids go on, text ends in an error, and what had no token yet is begun again."""
    whole: list[Any] = []
    with server.sdk() as client:
        assert server.metric("penstock_replicas_ready", model="ids") == 2
        ids = chat(client, "ids", PROMPT, LONG, temperature=0, stream=True, stream_options={"include_usage": True})
        text = chat(client, "text", "hello", LONG, temperature=0, stream=True)
        begun = [next(ids) for _ in range(3)], [next(text) for _ in range(3)]
        asking = threading.Thread(target=lambda: whole.append(chat(client, "slow", "hello", 1)))
        asking.start()
        await until(lambda: server.metric("penstock_requests_running", model="slow") == 1, "the third request")
        first.kill()
        chunks = [*begun[0], *ids]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == chain(PROMPT, LONG)
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len(PROMPT), LONG)
        with pytest.raises(openai.APIError) as cut_short:
            list(text)
        assert cut_short.value.code == "engine_failed"
        asking.join()
        assert whole[0].choices[0].message.content == expected_text("hello", 1)
        for outcome, model in (("continued", "ids"), ("cannot_continue", "text"), ("retried", "slow")):
            assert server.metric("penstock_failovers_total", outcome=outcome, model=model) == 1
        assert chat(client, "ids", "hello", 4).choices[0].message.content == expected_text("hello", 4)
