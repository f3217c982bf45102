"""Which tokens made the text that a client reads, and how likely they were.

Text is let out later than its tokens come: half a character waits for its other half, a possible stop string for what
follows. A token is told of with the first text that it is part of, each once, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from engines.types import TokenLogprobs
from server.text.detokenizer import IncrementalDetokenizer

IMPOSSIBLE = -9999.0
"""The least that is told: JSON has no infinity, and this is what OpenAI writes for it."""


class LikelyToken(msgspec.Struct, frozen=True, gc=False):
    """`data` are the bytes that it adds to a text; none of a special token, which has a `name`. `logprob` is None for
    the first token of a prompt, before which there is nothing."""

    data: bytes
    name: str
    logprob: float | None

    @property
    def text(self) -> str | None:
        """None where its bytes alone are no text."""
        if not self.data:
            return self.name
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return None

    @property
    def escaped(self) -> str:
        return "".join(f"\\x{byte:02x}" for byte in self.data)


class ToldToken(msgspec.Struct, frozen=True):
    """`top` are the likeliest in its place, the likeliest first. `offset`: characters of the text before it."""

    token: LikelyToken
    top: tuple[LikelyToken, ...]
    offset: int


class Part(NamedTuple):
    """Words that the model wrote: of the answer's content, or of something else."""

    words: str
    is_content: bool


@dataclass(slots=True, frozen=True)
class _Waiting:
    """A token whose text, from `start` to `end` of what the model wrote, is not let out yet."""

    told: ToldToken
    start: int
    end: int

    @property
    def has_text(self) -> bool:
        return self.end > self.start


class TokenTeller:
    """One answer's tokens. `detokenizer` is its own; `name_of` gives a token as the vocabulary writes it.

    `tells_all`: tokens that add no text are told of too, such as the one that ends an answer. `offset`: characters
    that stand before the answer's text.
    """

    def __init__(
        self,
        detokenizer: IncrementalDetokenizer,
        name_of: Callable[[int], str],
        *,
        tells_all: bool = False,
        offset: int = 0,
    ) -> None:
        self._detokenizer = detokenizer
        self._name_of = name_of
        self._tells_all = tells_all
        self._offset = offset
        self._num_written = 0  # characters that the model wrote, half ones left out
        self._num_read = 0  # of these, those that have been let out, or dropped
        self._unread = ""
        self._waiting: deque[_Waiting] = deque()
        self._told: list[ToldToken] = []
        self._prompt: list[ToldToken] = []  # of the text before the answer
        self._num_in_prompt = 0  # characters of it

    def prompt(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        """Of a text that stands before the answer: `logprobs` are of the next of its tokens, none of the first."""
        start = len(self._prompt)
        likely = logprobs if start else [None, *logprobs]
        for token_id, each in zip(token_ids[start : start + len(likely)], likely, strict=True):
            self._prompt.append(self._as_told(token_id, each, min(self._num_in_prompt, self._offset)))
            self._num_in_prompt += len(self._detokenizer.add([token_id]))

    def let_out_prompt(self) -> None:
        """All of it, before the answer's own."""
        self._told += self._prompt
        self._prompt = []

    def add(self, token_id: int, logprobs: TokenLogprobs, *, is_text: bool = True) -> None:
        """The model's next token; not `is_text`: it ends the answer and is not part of it."""
        told = self._as_told(token_id, logprobs, self._offset + self._num_written)
        start = self._num_written
        if is_text:
            self._num_written += len(self._detokenizer.add([token_id]))
        adds_text = is_text and bool(told.token.data)
        if adds_text or self._tells_all:
            end = max(self._num_written, start + 1) if adds_text else start
            self._waiting.append(_Waiting(told, start, end))

    def _as_told(self, token_id: int, logprobs: TokenLogprobs | None, offset: int) -> ToldToken:
        if logprobs is None:
            return ToldToken(self._likely(token_id, None), (), offset)
        top = tuple(self._likely(each, value) for each, value in logprobs.top)
        return ToldToken(self._likely(token_id, logprobs.logprob), top, offset)

    def _likely(self, token_id: int, logprob: float | None) -> LikelyToken:
        data = self._detokenizer.bytes_of(token_id)
        name = "" if data else self._name_of(token_id) or f"<|no token {token_id}|>"
        return LikelyToken(data, name, None if logprob is None else max(logprob, IMPOSSIBLE))

    # --- what becomes of their text

    def read(self, text: str) -> None:
        """What the model wrote goes on, to be let out or dropped."""
        self._unread += text

    def let_out(self, words: str) -> None:
        """These words, the next of it, are the answer's."""
        self.assign([Part(words, is_content=True)])

    def assign(self, parts: Sequence[Part], num_held: int = 0) -> None:
        """Parts of it in their order; what lies between them is dropped. `num_held`: characters behind them of which
        nothing is known yet."""
        places: list[int] = []
        limit = len(self._unread) - num_held
        for part in reversed(parts):  # since the last of them ends where the held ones begin, or close to it
            limit = max(self._unread.rfind(part.words, 0, max(limit, 0)), 0)
            places.append(self._num_read + limit)
        for part, start in zip(parts, reversed(places), strict=True):
            if part.is_content:
                self._tell(start, start + len(part.words))
            self._skip_to(start + len(part.words))

    def _tell(self, start: int, end: int) -> None:
        while self._waiting and self._waiting[0].start + self._waiting[0].has_text <= end:
            first = self._waiting.popleft()
            if first.end > start or not first.has_text:
                self._told.append(first.told)

    def _skip_to(self, position: int) -> None:
        self._unread = self._unread[position - self._num_read :]
        self._num_read = position

    def take(self) -> tuple[ToldToken, ...]:
        """Those that can be told since the last call."""
        told, self._told = tuple(self._told), []
        return told
