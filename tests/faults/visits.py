"""One request of a soak: what it asked, and all that its client was told."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import httpx

from tests.clients import expected_text

Kind = Literal["chat", "chat stream", "chat socket", "response", "response stream", "vectors", "malformed", "noise"]
WEIGHTS: dict[Kind, int] = {
    "chat": 3,
    "chat stream": 6,
    "chat socket": 3,
    "response": 2,
    "response stream": 3,
    "vectors": 3,
    "malformed": 1,
    "noise": 1,
}
MAX_TOKENS, MAX_TOKENS_OF_SLOW = 200, 1000
LEAVE_WITHIN = 2.0  # seconds
RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed")


class End(StrEnum):
    WHOLE = "whole"
    FAILED = "failed"  # by an error, of the HTTP answer or in its stream
    LEFT = "left"  # by its client


@dataclass(slots=True)
class Visit:
    """`leaves_after` seconds its client is gone, if it has no answer by then."""

    kind: Kind
    prompt: str
    max_tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    leaves_after: float | None = None
    is_slow: bool = False
    request_id: str = ""
    status: int = 0
    text: str = ""
    usage: tuple[int, int] | None = None  # tokens of the prompt and of the answer, as it was told
    code: str = ""  # of its error
    finish: str = ""
    end: End | None = None

    def check(self) -> None:
        """It has ended, once, and what came is right to the byte."""
        assert self.end is not None, self
        assert self.text == expected_text(self.prompt, len(self.text)), self
        if self.end == End.WHOLE and self.kind != "vectors":
            assert len(self.text) == self.max_tokens, self
            assert self.usage == (len(self.prompt), self.max_tokens), self

    def open(self, answer: httpx.Response) -> bool:
        """Whether an answer follows."""
        self.status, self.request_id = answer.status_code, answer.headers["x-request-id"]
        return self.status == 200

    def close(self, end: End) -> None:
        assert self.end is None, f"a second end: {self}"
        self.end = end

    def fail(self, error: dict[str, Any] | None) -> None:
        self.code = str((error or {}).get("code"))
        self.close(End.FAILED)

    def take_chat(self, chunk: dict[str, Any]) -> None:
        """One that is streamed ends with [DONE], which is not for here, or with an error."""
        assert self.end is None, f"more after its end: {self}"
        if "error" in chunk:
            self.fail(chunk["error"])
            return
        self.take_usage(chunk.get("usage"), "prompt_tokens", "completion_tokens")
        for choice in chunk["choices"]:
            part = choice.get("delta") or choice.get("message") or {}
            self.text += part.get("content") or ""
            self.finish = choice["finish_reason"] or self.finish

    def take_event(self, event: dict[str, Any]) -> None:
        assert self.end is None, f"more after its end: {self}"
        if event["type"] == "response.output_text.delta":
            self.text += event["delta"]
        elif event["type"] in RESPONSE_ENDS:
            said, self.text = self.text, ""
            self.take_response(event["response"])
            assert self.text == said, self
        elif event["type"] == "error":
            self.fail(event)

    def take_response(self, response: dict[str, Any]) -> None:
        parts = [part for item in response["output"] for part in item.get("content", ())]
        self.text = "".join(part["text"] for part in parts)
        if response["status"] == "failed":
            self.fail(response["error"])
            return
        self.take_usage(response["usage"], "input_tokens", "output_tokens")
        self.close(End.WHOLE)

    def take_usage(self, usage: dict[str, Any] | None, prompt: str, answer: str) -> None:
        if usage is not None:
            self.usage = (usage[prompt], usage.get(answer, 0))


def random_visit(rng: random.Random, number: int) -> Visit:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    prompt = f"{number} " + "word " * rng.randrange(60)
    visit = Visit(kind, prompt, rng.randint(1, MAX_TOKENS))
    visit.options = rng.choice([{"temperature": 0}, {"temperature": 0}, {}])
    if rng.random() < 0.2:
        visit.leaves_after = rng.uniform(0, LEAVE_WITHIN)
    elif kind == "chat stream" and rng.random() < 0.1:
        visit.is_slow, visit.max_tokens = True, rng.randint(MAX_TOKENS, MAX_TOKENS_OF_SLOW)
    return visit
