"""A conversation made short: what the user said last, word for word, and the model's own summary of all of it."""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import InvalidRequest
from server.generation import Generation
from server.job import Caller
from server.pipeline import Pipeline
from server.responses.asking import TOO_LONG, ChatOfResponse, fitted, own_names
from server.responses.conversation import Message
from server.responses.seal import Seal
from server.streaming import JSONAnswer
from server.wire.common import Answer, encode
from server.wire.response_body import CompactedResponse, Compaction, usage_body
from server.wire.response_items import new_item_id

FEATURE, ID_PREFIX = "responses", "resp_"
MIN_ROOM = 64  # tokens that a summary should have; the oldest messages make room for it
MAX_VERBATIM = 2000  # characters
TASK = (
    "Summarize the conversation below for whoever goes on with it: what was asked, what was found and decided, names"
    " and numbers, and what is still to do. Write the summary alone."
)


async def summarizing(pipeline: Pipeline, caller: Caller, model: str, messages: Sequence[Message]) -> Generation:
    """What writes the summary: of as many of the latest messages as the model can read. Raises APIError."""

    async def attempt(some: Sequence[Message]) -> Generation:
        asked = [{"role": "system", "content": TASK}, {"role": "user", "content": "\n".join(map(_line, some))}]
        with own_names():
            generation = await pipeline.chat(caller, ChatOfResponse(model=model, messages=asked), FEATURE, ID_PREFIX)  # type: ignore[arg-type]
        if generation.job.prompts[0].sampling.max_tokens < MIN_ROOM and len(some) > 1:
            raise InvalidRequest("There is no room for a summary.", param="input", code=TOO_LONG)
        return generation

    return await fitted(messages, attempt, truncate=True)


def _line(message: Message) -> str:
    calls = [
        f"calls {call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls", ())
    ]
    return f"{message['role']}: " + " ".join([message["content"] or "", *calls]).strip()


def _verbatim(messages: Sequence[Message]) -> str:
    """The user's latest words, as many as are kept."""
    kept: list[str] = []
    for message in reversed(messages):
        if message["role"] == "user" and sum(map(len, kept)) + len(message["content"]) <= MAX_VERBATIM:
            kept.append(f"- {message['content']}")
    return "\n".join(reversed(kept))


class CompactedAnswer(JSONAnswer[list[Answer]]):
    def __init__(self, generation: Generation, messages: Sequence[Message], seal: Seal) -> None:
        super().__init__(generation)
        self._messages = messages
        self._seal = seal

    async def gather(self, generation: Generation) -> list[Answer]:
        return await generation.collect()

    async def body_of(self, generation: Generation, gathered: list[Answer]) -> bytes:
        text = f"The user said:\n{_verbatim(self._messages)}\n\nIn summary:\n{gathered[0].text.strip()}"
        item = Compaction(new_item_id("compaction"), self._seal.close(text))
        head = generation.job.head
        return encode(CompactedResponse(head.id, head.created, [item], usage_body(generation.usage)))
