"""Grammars by llguidance: an Earley parser over derivatives of regular expressions, which computes masks as it goes.

A grammar so is compiled in about a millisecond, and what it costs comes with each mask. Both are bounded here; past a
bound the library puts the matcher into an error state instead of raising.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from engines.constraint import GrammarError
from engines.types import Grammar, GrammarKind
from engines.vocabulary import Vocabulary

# Between tokens of JSON: nothing, a space, or a line feed and an indent. Without a bound a small model that is not let
# out of an object writes blanks until its tokens are used up.
WHITESPACE = r"( |\n {0,20})?"
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms
    step_lexer_fuel=200_000,  # about 14 ms of one mask
    step_max_items=50_000,  # about 3 ms of one mask
    max_lexer_states=20_000,  # 1 to 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)
_MAX_REASON = 300  # characters
_LISTING = re.compile(r"\s*\d+ \| |\s*\^+\s*$")  # a numbered line of the grammar, a mark under one
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")


class _Words:
    """The duck that llguidance asks for a tokenizer's parts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        backend = Tokenizer.from_str(vocabulary.tokenizer)
        # An end of text of our own behind the model's tokens: what ends an answer is the request's matter.
        self.eos_token_id = len(vocabulary.tokens)
        self.tokens = [*vocabulary.tokens, b"<|end of the grammar's text|>"]
        self.special_token_ids = [*vocabulary.special, self.eos_token_id]
        self.bos_token_id = None
        self._encode: Callable[[str], list[int]] = lambda text: backend.encode(text, add_special_tokens=False).ids

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def open_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """About 0.4 s for 150,000 tokens."""
    words = _Words(vocabulary)
    return LLTokenizer(TokenizerWrapper(words), n_vocab=len(words.tokens), eos_token=words.eos_token_id)


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the beginning of the grammar, to be copied for each sequence. Raises GrammarError.

    Releases the GIL while it compiles.
    """
    matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=LIMITS)
    check(matcher)
    return matcher


def check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(_reason(matcher.get_error()))


def _source(grammar: Grammar) -> str:
    if grammar.kind is GrammarKind.LARK:
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides={"whitespace_pattern": WHITESPACE})
    except ValueError as error:
        raise GrammarError(_reason(str(error))) from None


def _reason(text: str) -> str:
    """In one line, without where in our Lark it is: the client wrote a schema."""
    said = [line for line in text.splitlines() if not _LISTING.match(line)]
    line = _PLACE.sub("", " ".join(" ".join(said).split()))
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 3] + "..."
