"""Items of a conversation, as they are kept -> the messages of a chat, as templates know them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.errors import InvalidRequest
from server.wire.response_items import Item

Message = dict[str, Any]
SUMMARY = "The conversation so far, in short:\n"
_SYSTEM = ("system", "developer")


@dataclass(slots=True, frozen=True)
class Reading:
    """How a model is shown what is not words. `image`: what stands for one; None where it can't be shown any."""

    image: str | None
    unsealed: Callable[[str], str]


@dataclass(slots=True)
class _Turn:
    """An assistant's message in the making: reasoning, words and calls are items of their own, but one message."""

    reasoning: str = ""
    text: str | None = None
    calls: list[Message] = field(default_factory=list)

    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": self.text}
        if self.text is None and not self.calls:
            message["content"] = ""
        if self.calls:
            message["tool_calls"] = self.calls
        return message | ({"reasoning_content": self.reasoning} if self.reasoning else {})


def messages_of(items: Sequence[Item], instructions: str | None, reading: Reading) -> list[Message]:
    """Raises InvalidRequest for an output whose call is not there, and for parts that the model can't read."""
    _check_calls(items)
    writer = _Writer(reading)
    for item in items:
        writer.add(item)
    return _with_instructions(writer.finish(), instructions)


class _Writer:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._messages: list[Message] = []
        self._turn: _Turn | None = None

    def add(self, item: Item) -> None:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                self._turn_without(text=True).text = self._words(item["content"])
            case "reasoning":
                self._turn_without(text=True, reasoning=True).reasoning = self._thoughts(item)
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                self._turn_without().calls.append(call)
            case "function_call_output":
                self._say("tool", self._words(item["output"]), tool_call_id=item["call_id"])
            case "compaction":
                self._say("user", SUMMARY + self._reading.unsealed(item["encrypted_content"]))
            case _:
                self._say(item["role"], self._words(item["content"]))

    def finish(self) -> list[Message]:
        if self._turn is not None:
            self._messages.append(self._turn.message())
            self._turn = None
        return self._messages

    def _say(self, role: str, text: str, **fields: str) -> None:
        self.finish()
        self._messages.append({"role": role, "content": text, **fields})

    def _turn_without(self, *, text: bool = False, reasoning: bool = False) -> _Turn:
        """The turn that goes on; a new one where it has words, or thoughts, already, or has come to its calls."""
        turn = self._turn
        is_taken = turn is not None and (
            (text and (turn.text is not None or turn.calls)) or (reasoning and turn.reasoning)
        )
        if turn is None or is_taken:
            self.finish()
            turn = self._turn = _Turn()
        return turn

    def _thoughts(self, item: Item) -> str:
        if sealed := item.get("encrypted_content"):
            return self._reading.unsealed(sealed)
        return "".join(part["text"] for part in item.get("content") or ())

    def _words(self, content: str | list[Item]) -> str:
        return content if isinstance(content, str) else "".join(self._part(part) for part in content)

    def _part(self, part: Item) -> str:
        if part["type"] != "input_image":
            return str(part.get("text", part.get("refusal", "")))
        if self._reading.image is None:
            message = "This model reads text; a part of type 'input_image' is not supported."
            raise InvalidRequest(message, param="input", code="unsupported_content")
        return self._reading.image


def _check_calls(items: Iterable[Item]) -> None:
    called = set()
    for item in items:
        if item["type"] == "function_call":
            called.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in called:
            message = f"No tool call found for function call output with call_id {item['call_id'][:128]}."
            raise InvalidRequest(message, param="input")


def _with_instructions(messages: list[Message], instructions: str | None) -> list[Message]:
    """Before everything; in one message with a system message that follows, for templates that know but one."""
    if not instructions:
        return messages
    if messages and messages[0]["role"] in _SYSTEM:
        first, *rest = messages
        return [first | {"content": f"{instructions}\n\n{first['content']}"}, *rest]
    return [{"role": "system", "content": instructions}, *messages]


def without_oldest(messages: Sequence[Message], count: int) -> list[Message]:
    """What is left of a conversation that lost its oldest `count` messages, those of the system aside, and with them
    the answers of tools that nobody asks for any more. The last message always stays; the answer of a tool, with what
    asked for it."""
    others = [place for place, message in enumerate(messages) if message["role"] not in _SYSTEM]
    askers = [index for index, place in enumerate(others) if messages[place]["role"] != "tool"]
    if not askers:
        return list(messages)
    first = others[next(index for index in askers if index >= min(count, askers[-1]))]
    return [message for place, message in enumerate(messages) if place >= first or message["role"] in _SYSTEM]
