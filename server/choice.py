"""One choice of a running request: from its sequence's deltas to its text."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from engines.types import FinishReason, OutputDelta, SamplingParams
from server.job import PreparedPrompt
from server.text.answer import AnswerPiece, AnswerStream, CallPiece, joined
from server.text.logprobs import ToldToken
from server.wire.common import Answer, Call


class Piece(msgspec.Struct, frozen=True):
    """What became known of one choice: text to send, or vectors by the index of a text, and how it ended if it did
    (`stop`: at this stop string).

    `is_anew`: it begins again, and what came of it before is void. Only of whole answers, whose clients saw none of it.
    """

    index: int
    text: str
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    is_anew: bool = False
    vectors: dict[int, bytes] = {}
    stop: str | None = None
    tokens: tuple[ToldToken, ...] | None = None  # None: nobody asked for them
    mean_logprob: float | None = None  # of all tokens of a choice that ends here, where they are known

    @property
    def is_empty(self) -> bool:
        has_words = self.text or self.reasoning or self.calls or self.tokens
        return not (has_words or self.is_anew) and self.finish_reason is None


def compact(pieces: Iterable[Piece]) -> list[Piece]:
    """The same told in one piece a choice. Reasoning comes before words in every format, and calls behind them."""
    by_choice: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_choice.setdefault(piece.index, []).append(piece)
    return [parts[0] if len(parts) == 1 else _one(parts) for parts in by_choice.values()]


def _one(parts: Sequence[Piece]) -> Piece:
    begun = max((i for i, part in enumerate(parts) if part.is_anew), default=0)
    valid, last = parts[begun:], parts[-1]
    return Piece(
        index=last.index,
        text="".join(part.text for part in valid),
        finish_reason=last.finish_reason,
        reasoning="".join(part.reasoning for part in valid),
        calls=_whole_calls(call for part in valid for call in part.calls),
        is_anew=valid[0].is_anew,
        vectors={index: vector for part in valid for index, vector in part.vectors.items()},
        stop=last.stop,
        tokens=_all_tokens(valid),
        mean_logprob=last.mean_logprob,
    )


def _all_tokens(parts: Sequence[Piece]) -> tuple[ToldToken, ...] | None:
    told = [part.tokens for part in parts if part.tokens is not None]
    return tuple(token for tokens in told for token in tokens) if told else None


def _whole_calls(calls: Iterable[CallPiece]) -> tuple[CallPiece, ...]:
    by_index: dict[int, list[CallPiece]] = {}
    for call in calls:
        by_index.setdefault(call.index, []).append(call)
    return tuple(
        CallPiece(index, "".join(part.arguments for part in parts), parts[0].id, parts[0].name)
        for index, parts in by_index.items()
    )


class WholeChoice:
    """One choice's pieces put together."""

    def __init__(self) -> None:
        self._finish_reason: FinishReason | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[CallPiece]] = {}
        self._stop: str | None = None
        self._tokens: list[ToldToken] | None = None
        self._mean_logprob: float | None = None

    def add(self, piece: Piece) -> None:
        if piece.is_anew:
            for parts in (self._texts, self._reasoning, self._calls):
                parts.clear()
            self._tokens = None
        self._finish_reason = piece.finish_reason
        self._texts.append(piece.text)
        self._reasoning.append(piece.reasoning)
        self._stop = piece.stop
        self._mean_logprob = piece.mean_logprob
        if piece.tokens is not None:
            self._tokens = self._tokens or []
            self._tokens += piece.tokens
        for call in piece.calls:
            self._calls.setdefault(call.index, []).append(call)

    def answer(self) -> Answer:
        """Of a choice that has ended."""
        assert self._finish_reason is not None
        calls = [
            Call(parts[0].id or "", parts[0].name or "", "".join(part.arguments for part in parts))
            for parts in self._calls.values()
        ]
        return Answer(
            "".join(self._texts),
            self._finish_reason,
            "".join(self._reasoning),
            tuple(calls),
            self._stop,
            None if self._tokens is None else tuple(self._tokens),
            self._mean_logprob,
        )


def likeliest(answers: Sequence[Answer], num_samples: int, num_wanted: int) -> list[Answer]:
    """Of each prompt's `num_samples` answers those whose tokens are the likeliest on average, the likeliest first."""
    if num_samples == num_wanted:
        return list(answers)
    found: list[Answer] = []
    for first in range(0, len(answers), num_samples):
        ranked = sorted(answers[first : first + num_samples], key=_mean_logprob, reverse=True)
        found += ranked[:num_wanted]
    return found


def _mean_logprob(answer: Answer) -> float:
    return -math.inf if answer.mean_logprob is None else answer.mean_logprob


def seed_of_sample(seed: int, sample: int) -> int:
    """Of several answers to a prompt the first is that of the seed itself; the others' seeds follow from it."""
    digest = hashlib.blake2b(f"{seed} {sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # engines seed with 63 bits


@dataclass(slots=True)
class Choice:
    """One sequence of a request, whichever engines it runs on."""

    index: int
    prompt: PreparedPrompt
    stream: AnswerStream
    prompt_number: int = 0  # of its request
    sample: int = 0  # among those of its prompt
    token_ids: array[int] = field(default_factory=lambda: array("i"))  # of the answer; none from an engine of text
    num_prompt: int = 0  # set with the first output, and so is what is cached of it
    num_output: int = 0
    num_cached: int = 0
    num_computed: int = 0  # of the prompt
    logprob: float = 0.0  # of all tokens of the answer together, where the engine tells
    submitted_after: float = 0.0  # seconds from the request's arrival to its latest submission
    queue_seconds: float | None = None  # from the request's arrival to the first step of the engine that began it
    finish_reason: FinishReason | None = None

    @property
    def has_output(self) -> bool:
        return self.num_prompt > 0

    @property
    def is_done(self) -> bool:
        """It ended, and not in an error."""
        return self.finish_reason not in (None, FinishReason.ERROR)

    @property
    def sampling(self) -> SamplingParams:
        """As its next engine is to have them: with a seed of its own, and without what was told already."""
        params = self.prompt.sampling
        if self.sample and params.seed is not None:
            params = replace(params, seed=seed_of_sample(params.seed, self.sample))
        if self.has_output and params.prompt_logprobs is not None:
            params = replace(params, prompt_logprobs=None)
        return params

    def take(self, delta: OutputDelta) -> Piece:
        """An engine's error is no end yet, unless nothing was missing: the answer may go on elsewhere."""
        opening = None if self.has_output else self._open(delta)
        self.count(delta)
        piece = self._add(delta) if opening is None else joined([opening, self._add(delta)])
        reason = delta.finish_reason if delta.error is None else self._end_without_engine()
        if reason is not None and not piece.stopped:
            piece = joined([piece, self.stream.finish()])
        if self.prompt.only_prompt and reason is not None:
            reason = FinishReason.LENGTH
        reason = FinishReason.STOP if piece.stopped else reason
        calls_end = reason is FinishReason.STOP and self.stream.num_calls > 0
        self.finish_reason = FinishReason.TOOL_CALLS if calls_end else reason
        tokens = self.stream.tokens
        return Piece(
            self.index,
            piece.text,
            self.finish_reason,
            piece.reasoning,
            piece.calls,
            vectors=delta.vectors,
            stop=piece.stop,
            tokens=None if tokens is None else tokens.take(),
            mean_logprob=self.mean_logprob if self.is_done else None,
        )

    @property
    def mean_logprob(self) -> float | None:
        tells = self.prompt.sampling.logprobs is not None
        return self.logprob / self.num_output if tells and self.num_output else None

    def _open(self, delta: OutputDelta) -> AnswerPiece | None:
        """What stands before the answer, with its first output. Until then what is told of it waits."""
        if (echo := self.prompt.echo) is None:
            return None
        if self.stream.tokens is not None:
            self.stream.tokens.prompt(self.prompt.token_ids, delta.prompt_logprobs)
        return self.stream.echo(echo) if delta.has_output else None

    def _end_without_engine(self) -> FinishReason | None:
        """An engine may give its last token before it says that it was the last."""
        is_full = bool(self.token_ids) and len(self.token_ids) >= self.prompt.sampling.max_tokens
        is_told = self.prompt.only_prompt and self.has_output
        return FinishReason.LENGTH if is_full or is_told else None

    def begin_again(self) -> None:
        """What the failed engine gave is dropped, and charged to nobody."""
        self.stream = self.prompt.new_stream()
        self.token_ids = array("i")
        self.num_prompt = self.num_output = self.num_cached = self.num_computed = 0
        self.logprob = 0.0

    def count(self, delta: OutputDelta) -> None:
        """What the engine did is charged, whether somebody reads it or not. The prompt is charged once: an engine that
        goes on with the answer computes it again, and that is no business of the client's."""
        if delta.has_output and not self.num_prompt:
            self.num_cached = delta.cached_tokens
            self.queue_seconds = self.submitted_after + delta.queue_seconds
            self.num_prompt = self.num_computed = delta.prompt_tokens or len(self.prompt.token_ids)
        elif delta.queue_seconds and self.queue_seconds is None:  # aborted before its first token
            self.queue_seconds = self.submitted_after + delta.queue_seconds
        if delta.vectors:  # of some of the texts
            self.num_prompt = self.num_computed = delta.computed_tokens
        if not self.prompt.only_prompt:
            self.num_output += self._num_tokens(delta)
            self.token_ids.extend(delta.token_ids)
            for told in delta.logprobs:
                self.logprob += told.logprob
        # To an engine that goes on with an answer, the tokens before are part of the prompt.
        self.num_computed = max(self.num_computed, min(delta.computed_tokens, len(self.prompt.token_ids)))

    def _num_tokens(self, delta: OutputDelta) -> int:
        return (
            len(delta.token_ids) or delta.num_text_tokens or (self.prompt.count_tokens(delta.text) if delta.text else 0)
        )

    def _add(self, delta: OutputDelta) -> AnswerPiece:
        if self.prompt.only_prompt:
            return AnswerPiece()
        if delta.text:
            return self.stream.add_text(delta.text, self._num_tokens(delta))
        if not self._ends_in_stop_token(delta):
            return self.stream.add(delta.token_ids, delta.logprobs)
        piece = self.stream.add(delta.token_ids[:-1], delta.logprobs[:-1])
        if self.stream.tokens is not None and not piece.stopped:
            self.stream.tokens.add(delta.token_ids[-1], delta.logprobs[-1], is_text=False)
        return piece

    def _ends_in_stop_token(self, delta: OutputDelta) -> bool:
        """It ends the text without being part of it."""
        is_stop = bool(delta.token_ids) and delta.finish_reason is FinishReason.STOP
        return is_stop and delta.token_ids[-1] in self.prompt.sampling.stop_token_ids
