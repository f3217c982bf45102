"""The engine against a real Triton, without a gateway: a request in, a whole answer out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from engines.triton.engine import TritonEngine
from engines.types import EngineConfig, FinishReason, GenerationRequest, OutputDelta, RequestError, SamplingParams

CONTEXT = 4096


@dataclass
class Answer:
    data: bytes = b""  # of the text, or of the tokens, each of which is a byte
    deltas: list[OutputDelta] = field(default_factory=list)

    def take(self, delta: OutputDelta) -> None:
        self.deltas.append(delta)
        self.data += delta.text.encode() + bytes(delta.token_ids)

    @property
    def text(self) -> str:
        return self.data.decode()

    @property
    def reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason

    @property
    def error(self) -> RequestError | None:
        return self.deltas[-1].error

    @property
    def num_tokens(self) -> int:
        return sum(len(delta.token_ids) or delta.num_text_tokens for delta in self.deltas)


def build(url: str, model: str, version: str = "", **config: Any) -> TritonEngine:
    values = {"max_model_len": CONTEXT, "name": f"{model}@1"} | config
    return TritonEngine(EngineConfig("triton", url=url, remote_model=model, remote_version=version, **values))


@contextlib.asynccontextmanager
async def watched(engine: TritonEngine) -> AsyncIterator[TritonEngine]:
    """As a worker has it."""
    watching = asyncio.create_task(engine.watch())
    await asyncio.sleep(0)
    try:
        yield engine
        assert not watching.done(), "nobody watches any more"
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def request(prompt: str, max_tokens: int = 12, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return GenerationRequest("r", "a", list(prompt.encode()), params, 0.0, 0.0, prompt_text=prompt)


async def ask(engine: TritonEngine, asked: GenerationRequest, padded_len: int = 0) -> Answer:
    answer = Answer()
    async for delta in engine.generate(asked, padded_len or len(asked.prompt_token_ids)):
        assert answer.reason is None if answer.deltas else True
        answer.take(delta)
    return answer
