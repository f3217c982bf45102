"""Chat messages to prompt tokens, so that no message can pose as another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest
from server.text.chat_template import ChatTemplate, Message, parse_arguments
from server.text.tokenizer import INERT, Tokenizer

ITEM_SIZE = 20  # characters that cost about as much as what is done for each item, however short it is


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
        text = self.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, template_kwargs=template_kwargs
        )
        return self.encode_rendered(text)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as one text, with marks in it where a message holds a special token's string."""
        return self.template.render(
            messages,
            tools=self._inert(tools),
            add_generation_prompt=add_generation_prompt,
            template_kwargs=self._inert(template_kwargs),
            change=self._inert,
        )

    def encode_rendered(self, text: str) -> list[int]:
        if INERT in text:
            return self.tokenizer.encode_inert(text)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def as_text(self, rendered: str) -> str:
        """What `render` gave, for an engine with a tokenizer of its own, which begins every text as ours does by
        default. Raises InvalidRequest: no such engine can be told that a special token's string is plain text."""
        if INERT in rendered:
            message = "A message holds the text of one of this model's special tokens, which it can't be given."
            raise InvalidRequest(message, param="messages")
        bos = self.tokenizer.special_tokens.get("bos_token", "")
        adds_bos = self.tokenizer.encode("", add_special_tokens=True)[:1] == [self.tokenizer.bos_token_id]
        return rendered.removeprefix(bos) if adds_bos else rendered

    def words_for_image(self) -> str | None:
        """What the model's own template writes where a message has an image, such as "[image]".

        None where it has no words for one, or a special token, for which something would have to be put in.
        """
        before, after = "\N{SYMBOL FOR START OF TEXT}", "\N{SYMBOL FOR END OF TEXT}"
        parts = [{"type": "text", "text": text} for text in (before, after)]
        try:
            texts, mixed = (
                self.template.render([{"role": "user", "content": content}])
                for content in (parts, [parts[0], {"type": "image"}, parts[1]])
            )
        except InvalidRequest:
            return None
        if before + after not in texts:  # it does not know parts
            return None
        words = mixed.partition(before)[2].partition(after)[0]
        return words if words and self.tokenizer.make_inert(words) == words else None

    def ids_as_text(self, token_ids: list[int]) -> str:
        """The same for a prompt of token ids. Raises InvalidRequest where no text stands for just these."""
        text = self.tokenizer.decode(token_ids)
        if self.tokenizer.encode(text, add_special_tokens=True) != token_ids:
            raise InvalidRequest("This model takes text, and these token ids are those of none.", param="prompt")
        return text

    def _inert(self, value: Any) -> Any:
        try:
            return _map_strings(value, self.tokenizer.make_inert)
        except RecursionError as error:
            raise InvalidRequest("The messages are nested too deeply.", param="messages") from error


def client_strings(messages: Sequence[Message]) -> Iterator[str]:
    """What the client wrote and the model may read: contents, reasoning, names and ids, and the arguments of tool
    calls, both as the JSON text they came as and as the names and values which that stands for."""
    for message in messages:
        yield from _as_encoded([message.get(key) for key in ("content", "reasoning_content", "name", "tool_call_id")])
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


def size_of(value: Any) -> int:
    """About what work on JSON-like data grows with: its characters, and ITEM_SIZE for each item."""
    size, waiting = 0, [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                size += len(text)
            case Mapping() as mapping:
                waiting += [*mapping.keys(), *mapping.values()]
            case list() | tuple() as items:
                waiting += items
        size += ITEM_SIZE
    return size


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
