"""Chat messages to prompt tokens, so that no message can pose as another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest
from server.text.chat_template import ChatTemplate, Message, parse_arguments
from server.text.tokenizer import INERT, Tokenizer


@dataclass(slots=True, frozen=True)
class ChatEncoder:
    """A template and its tokenizer.

    Template and messages become one text, so a content with "<|im_end|>" in it would end its own turn and could
    begin another's. Such strings inside messages and tools are encoded as the plain text they are; the template's
    own stay special tokens. Messages without any are encoded as transformers' `apply_chat_template` does, to the
    same ids. Left open: a template that puts two client strings side by side, each holding half of a token's string.
    """

    tokenizer: Tokenizer
    template: ChatTemplate

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids; long ones belong in a thread. Raises InvalidRequest as `ChatTemplate.render` does."""
        text = self.template.render(
            messages,
            tools=self._inert(tools),
            add_generation_prompt=add_generation_prompt,
            template_kwargs=self._inert(template_kwargs),
            change=self._inert,
        )
        if INERT in text:
            return self.tokenizer.encode_inert(text)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _inert(self, value: Any) -> Any:
        try:
            return _map_strings(value, self.tokenizer.make_inert)
        except RecursionError as error:
            raise InvalidRequest("The messages are nested too deeply.", param="messages") from error


def client_strings(messages: Sequence[Message]) -> Iterator[str]:
    """What the client wrote and the model may read: contents, names and ids, and the arguments of tool calls, both as
    the JSON text they came as and as the names and values which that stands for."""
    for message in messages:
        yield from _as_encoded([message.get(key) for key in ("content", "name", "tool_call_id")])
        for form in (message, parse_arguments(message)):
            for call in form.get("tool_calls") or ():
                yield from _as_encoded([call.get("id"), *call["function"].values()])


def _as_encoded(value: Any) -> Iterator[str]:
    return (text.replace(INERT, "") for text in strings_in(value))


def strings_in(value: Any) -> Iterator[str]:
    """Every string in JSON-like data, keys included, in no certain order."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case Mapping() as mapping:
                waiting += [*mapping.keys(), *mapping.values()]
            case list() | tuple() as items:
                waiting += items


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of JSON-like data with every string changed, keys included."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {change(key): _map_strings(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_map_strings(item, change) for item in value]
        case _:
            return value
