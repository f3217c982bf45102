"""The grammars that one engine has compiled."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from engines import vocabulary
from engines.constraint import GrammarError
from engines.grammars.compiler import compile_grammar, open_tokenizer
from engines.grammars.matcher import Matcher
from engines.grammars.trials import Busy, Trials
from engines.grammars.zygote import Verdict
from engines.types import EngineConfig, ErrorCode, Grammar, RequestError, SamplingParams

MAX_COST = 256 * 2**20  # bytes of all compiled grammars that are kept, as measured when they were tried
MAX_KEPT = 256
USUAL_COST = MAX_COST // MAX_KEPT  # counted for one that was tried elsewhere
RETRY_MS = 1000
MEASURE_LASTS = 30.0  # seconds for which a grammar that took too much is refused without another trial


@dataclass(slots=True, frozen=True)
class _Refusal:
    problem: str
    until: float


@dataclass(slots=True)
class _Preparation:
    """`num_waiting` requests wait for its end; without any it is given up."""

    task: asyncio.Task[str]
    num_waiting: int = 0


class GrammarStore:
    """Compiled once, used by every sequence that has the same grammar; the ones longest unused go first.

    `prepare` belongs to the worker's event loop, `matcher` to the engine's thread.
    """

    def __init__(self, vocabulary_path: str) -> None:
        self._path = vocabulary_path
        self._trials = Trials(vocabulary_path)
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, tuple[LLMatcher, int]] = OrderedDict()
        self._refused: OrderedDict[Grammar, _Refusal] = OrderedDict()
        self._preparing: dict[Grammar, _Preparation] = {}

    async def close(self) -> None:
        await self._trials.close()
        self._masks.shutdown(wait=False)

    def is_ready(self, grammar: Grammar) -> bool:
        with self._lock:
            return grammar in self._compiled

    async def prepare(self, grammar: Grammar, account: str = "", *, was_used: bool = False) -> RequestError | None:
        """Requests with the same grammar wait for one trial of it."""
        if was_used:
            return await self._compile_again(grammar)
        if (preparation := self._preparing.get(grammar)) is None:
            preparation = _Preparation(asyncio.create_task(self._prepare(grammar, account)))
            self._preparing[grammar] = preparation
        preparation.num_waiting += 1
        try:
            problem = await asyncio.shield(preparation.task)
        except Busy as busy:
            return RequestError(ErrorCode.OVERLOADED, f"The server is busy: {busy}.", RETRY_MS)
        finally:
            preparation.num_waiting -= 1
            if preparation.num_waiting == 0:
                preparation.task.cancel()  # no effect on one that has ended
                del self._preparing[grammar]
        return RequestError(ErrorCode.INVALID_GRAMMAR, problem) if problem else None

    async def _compile_again(self, grammar: Grammar) -> RequestError | None:
        try:
            await asyncio.to_thread(self._compile, grammar, USUAL_COST)
        except GrammarError:  # it could be compiled elsewhere: that is not its client's fault
            return RequestError(
                ErrorCode.ENGINE_FAILED, "This engine can't compile the grammar of another one's answer."
            )
        return None

    async def _prepare(self, grammar: Grammar, account: str) -> str:
        """What is wrong with it; "" when it is ready."""
        if self.is_ready(grammar):
            return ""
        refusal = self._refused.get(grammar)
        if refusal is not None and time.monotonic() < refusal.until:
            return refusal.problem
        opening = asyncio.create_task(asyncio.to_thread(self._open_tokenizer))  # beside the process's own
        verdict = await self._trials.verdict(grammar, account)
        await opening
        if verdict.problem:
            self._refuse(grammar, verdict)
        else:
            await asyncio.to_thread(self._compile, grammar, verdict.cost)
        return verdict.problem

    def _refuse(self, grammar: Grammar, verdict: Verdict) -> None:
        """For good, unless the machine was just busy: then what the trial took says little."""
        until = time.monotonic() + MEASURE_LASTS if verdict.is_measured else math.inf
        self._refused[grammar] = _Refusal(verdict.problem, until)
        self._refused.move_to_end(grammar)
        while len(self._refused) > MAX_KEPT:
            self._refused.popitem(last=False)

    def matcher(self, params: SamplingParams, vocab_size: int, tokens: Iterable[int] = ()) -> Matcher:
        """For a new sequence, of which `tokens` were sampled elsewhere. Raises GrammarError."""
        assert params.grammar is not None
        compiled = self._compile(params.grammar, 0)  # it may have been dropped since it was prepared
        num_tokens = self._open_tokenizer().vocab_size - 1  # without the end that the compiler added
        return Matcher(compiled.deep_copy(), num_tokens, params.stop_token_ids, vocab_size, self._masks, tokens)

    def _compile(self, grammar: Grammar, cost: int) -> LLMatcher:
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar][0]
        compiled = compile_grammar(self._open_tokenizer(), grammar)
        with self._lock:
            self._compiled[grammar] = compiled, cost
            self._drop_oldest()
        return compiled

    def _drop_oldest(self) -> None:
        total = sum(cost for _, cost in self._compiled.values())
        while len(self._compiled) > 1 and (total > MAX_COST or len(self._compiled) > MAX_KEPT):
            _, (_, cost) = self._compiled.popitem(last=False)
            total -= cost

    def _open_tokenizer(self) -> LLTokenizer:
        with self._opening:
            if self._tokenizer is None:
                self._tokenizer = open_tokenizer(vocabulary.read(self._path))
            return self._tokenizer


def open_store(config: EngineConfig) -> GrammarStore | None:
    """None for an engine that was not told its vocabulary."""
    return GrammarStore(config.vocabulary) if config.vocabulary else None
