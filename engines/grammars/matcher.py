"""One sequence's place in its grammar."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import Executor, Future

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from engines.grammars.compiler import check

BoolRow = NDArray[np.bool_]


class Matcher:
    """Which tokens may come next. What it knows is a function of the tokens so far: `advance` by them, one by one, and
    it is where another one was that saw them.

    A mask is computed in `executor`'s thread, which holds no GIL for most of it, from the moment the token before is
    known: while the model computes the next logits. Otherwise used from the engine's thread only.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        num_tokens: int,
        stop_token_ids: Collection[int],
        vocab_size: int,
        executor: Executor,
        tokens: Iterable[int] = (),
    ) -> None:
        """`num_tokens` have a text; the logits' vocabulary may be larger. `tokens` were sampled elsewhere, by the same
        grammar. Raises GrammarError where they are not of it."""
        self._matcher = matcher
        self._num_tokens = num_tokens
        self._stops = np.array([t for t in stop_token_ids if 0 <= t < vocab_size], dtype=np.int64)
        self._stop_set = frozenset(stop_token_ids)
        self._vocab_size = vocab_size
        self._executor = executor
        matcher.consume_tokens(list(tokens))
        check(matcher)
        self._banned: Future[BoolRow] = executor.submit(self._compute)

    def banned(self) -> BoolRow:
        """The tokens that can't come next [vocabulary]. Waits for the mask. Raises GrammarError."""
        return self._banned.result()

    def advance(self, token: int) -> bool:
        """Take the sampled token; whether the text is complete and nothing can follow. Raises GrammarError."""
        if token in self._stop_set:  # the sequence ends with it
            return False
        self._matcher.consume_token(token)
        check(self._matcher)
        if self._matcher.is_stopped():
            return True
        self._banned = self._executor.submit(self._compute)
        return False

    def _compute(self) -> BoolRow:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        check(self._matcher)
        banned: BoolRow = np.equal(np.unpackbits(bits, count=self._vocab_size, bitorder="little"), 0)
        banned[self._num_tokens :] = True
        if self._matcher.is_accepting():
            banned[self._stops] = False
        return banned
