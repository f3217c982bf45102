"""Chat messages to prompt tokens, so that no message can pose as another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest
from server.text.chat_template import ChatTemplate, Message
from server.text.tokenizer import INERT, Tokenizer


@dataclass(slots=True, frozen=True)
class ChatPrompt:
    text: str
    token_ids: list[int]


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
    ) -> ChatPrompt:
        """The prompt of a chat; long ones belong in a thread. Raises InvalidRequest as `ChatTemplate.render` does."""
        text = self.template.render(
            self._inert(messages),
            tools=self._inert(tools),
            add_generation_prompt=add_generation_prompt,
            template_kwargs=self._inert(template_kwargs),
        )
        if INERT in text:
            return ChatPrompt(text.replace(INERT, ""), self.tokenizer.encode_inert(text))
        return ChatPrompt(text, self.tokenizer.encode(text, add_special_tokens=False))

    def _inert(self, value: Any) -> Any:
        try:
            return _map_strings(value, self.tokenizer.make_inert)
        except RecursionError as error:
            raise InvalidRequest("The messages are nested too deeply.", param="messages") from error


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
