"""A request that nothing is wrong with, before it runs. It holds nothing yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engines.types import BACKGROUND_PRIORITY, SamplingParams, TextSpan
from quota.levels import Layer
from server.auth import Principal
from server.cache.wish import Wish
from server.registry import Deployment
from server.text.answer import AnswerStream
from server.wire.common import ResponseHead

if TYPE_CHECKING:  # of an optional dependency
    from server.tracing.tracer import Context


@dataclass(slots=True, frozen=True)
class Caller:
    """Who asks, and what came with the request besides its body."""

    principal: Principal
    request_id: str  # ours
    endpoint: str
    features: frozenset[str] = frozenset()  # of the transport: websocket
    client_request_id: str = ""
    read_timeout: float | None = None  # how long the client waits for its next byte, in seconds
    arrival: float = field(default_factory=time.monotonic)
    cache: Wish | None = None  # what the client asks of the response cache
    priority: int = 0  # a larger number is later; from `engines.types.BACKGROUND_PRIORITY` on, in the background
    total_timeout: float | None = None  # seconds, instead of the configured ones
    trace: Context | None = field(default=None, repr=False)  # what its spans stand under; None: it has no trace yet

    def later(self, priority: int | None) -> Caller:
        """As one who asks for this priority: nobody becomes more urgent than he is."""
        return replace(self, priority=max(self.priority, priority or 0))

    @property
    def is_in_background(self) -> bool:
        return self.priority >= BACKGROUND_PRIORITY


@dataclass(slots=True, frozen=True)
class Reading:
    """What makes an answer of a model's tokens, besides the deployment: all that `new_stream` is made of, since two
    requests that differ in nothing else may share an answer."""

    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    is_chat: bool = False
    tool_names: frozenset[str] = frozenset()
    opened: bool = False  # the prompt ends where the model reasons
    max_calls: int | None = None
    mask: str = ""  # the version of the filter's terms
    tells_tokens: bool = False
    is_json: bool = False  # the answer's words are held to a schema
    restores: bytes = field(default=b"", repr=False)  # a digest of the values that placeholders stand for
    num_echoed: int = 0  # characters of the prompt that stand before the answer


@dataclass(slots=True, frozen=True)
class PreparedPrompt:
    token_ids: list[int]
    sampling: SamplingParams
    new_stream: Callable[[], AnswerStream]
    count_tokens: Callable[[str], int]  # of an answer whose engine gives text and no count
    text: str = ""  # the same prompt, for engines that take text
    reading: Reading = Reading()
    texts: list[TextSpan] = field(default_factory=list)  # of which vectors are wanted: the prompt is all of them
    echo: str | None = None  # what stands before each answer: the prompt
    only_prompt: bool = False  # no answer is wanted, only what is told of the prompt: the one token of it is dropped


@dataclass(slots=True, frozen=True)
class Job:
    """A request that nothing is wrong with. It holds nothing yet."""

    caller: Caller
    deployment: Deployment
    prompts: Sequence[PreparedPrompt]
    features: frozenset[str]
    head: ResponseHead
    layers: tuple[Layer, ...]
    streamed: bool
    include_usage: bool
    grammar_param: str | None = None  # the parameter that a grammar was made of
    is_legacy: bool = False  # functions instead of tools
    num_samples: int = 1  # answers that are computed to each prompt
    num_wanted: int = 1  # and of these, the likeliest, that are told of; all of them in a stream

    @property
    def num_choices(self) -> int:
        """Computed ones: those of the first prompt, then those of the next."""
        return len(self.prompts) * self.num_samples

    @property
    def cost(self) -> int:
        """Tokens that it may use at most: a prompt is charged once, whatever is computed of it."""
        return sum(len(prompt.token_ids) + self.num_samples * prompt.sampling.max_tokens for prompt in self.prompts)
