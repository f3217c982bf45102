"""A grammar as the sampler sees it. `engines.grammars` has the real thing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.types import ErrorCode, RequestError, SamplingParams


class GrammarError(Exception):
    """A grammar that can't be used, or not any further. The message is for the client."""


class Matcher(Protocol):
    """One sequence's place in its grammar."""

    def banned(self) -> NDArray[np.bool_]:
        """The tokens that can't come next [vocabulary]. Raises GrammarError."""

    def advance(self, token: int) -> bool:
        """Take the sampled token; whether nothing can follow it. Raises GrammarError."""


class MatcherSource(Protocol):
    def matcher(self, params: SamplingParams, vocab_size: int, tokens: Iterable[int] = ()) -> Matcher:
        """For a sequence of which `tokens` were sampled already. Raises GrammarError."""


class Constraint:
    """One sequence's grammar, of which a failure ends that sequence and not the step."""

    def __init__(self, source: MatcherSource, params: SamplingParams, vocab_size: int, tokens: Iterable[int]) -> None:
        self._failure = ""
        try:
            self._matcher: Matcher | None = source.matcher(params, vocab_size, tokens)
        except GrammarError as error:
            self._fail(error)

    @property
    def error(self) -> RequestError | None:
        return RequestError(ErrorCode.INVALID_GRAMMAR, self._failure) if self._matcher is None else None

    def mask(self, row: NDArray[np.float32]) -> None:
        """Leave only the tokens that may come next, in place."""
        if self._matcher is not None:
            try:
                row[self._matcher.banned()] = -np.inf
            except GrammarError as error:
                self._fail(error)

    def advance(self, token: int) -> bool:
        """Whether the answer ends with this token: `error` says why, or it is complete."""
        if self._matcher is not None:
            try:
                return self._matcher.advance(token)
            except GrammarError as error:
                self._fail(error)
        return True

    def _fail(self, error: GrammarError) -> None:
        self._failure, self._matcher = str(error), None
