"""An operator's list of terms: refused in prompts, masked in answers.

A term matches wherever its letters stand, inside words too ("ass" is in "class"): the operator writes " ass " to
mean a word. Case is folded as Unicode does it (ß = ss, İ = i + a dot above); accents and look-alikes are not. A
character whose folded form lies only partly in a match belongs to the match.

`OutputMask` hides terms in one text; `server.text.rewriting` has one for each text that a client puts together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from server.text.literals import trie_pattern

MASK = "***"
_JSON_WORDS = ("true", "false", "null", "e")  # the letters of JSON outside of its strings; 1e5 is a number
BLOCKLIST = "blocklist"  # the category of `block_input`, which OpenAI has not
CATEGORIES = (  # OpenAI's
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


class _Terms:
    """Case-folded terms, ready for searching whole texts and ends of texts."""

    def __init__(self, terms: Iterable[str]) -> None:
        folded = [term.casefold() for term in terms if term]
        self.names = {term.casefold(): term for term in terms if term}
        self.search = re.compile(trie_pattern(folded)).search
        self.prefixes = frozenset(term[:i] for term in folded for i in range(1, len(term)))
        self.longest = max(map(len, folded))
        self.first_letters = re.compile("[" + "".join(map(re.escape, {term[0] for term in folded})) + "]").search


class ContentFilter:
    """The `[filter]` part of a configuration. Immutable; serves all requests."""

    def __init__(
        self,
        block_input: Sequence[str] = (),
        mask_output: Sequence[str] = (),
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`categories`: terms by OpenAI's name of a category; they are told of, and refuse nothing."""
        self._block = _Terms(block_input) if any(block_input) else None
        self._mask = _Terms(mask_output) if any(mask_output) else None
        bare = [term for term in mask_output if not _may_be_json(term)]
        self._bare_mask = _Terms(bare) if bare else None
        self._categories = {name: _Terms(terms) for name, terms in (categories or {}).items() if any(terms)}

        folded = sorted(self._mask.names) if self._mask is not None else []
        self.mask_version = hashlib.sha256("\0".join(folded).encode()).hexdigest() if folded else ""

    @property
    def can_moderate(self) -> bool:
        """Whether there is anything to judge a text by."""
        return self._block is not None or bool(self._categories)

    def moderate(self, text: str) -> frozenset[str]:
        """The categories that a text belongs to, BLOCKLIST among them."""
        folded = text.casefold()
        found = {name for name, terms in self._categories.items() if terms.search(folded)}
        return frozenset(found | ({BLOCKLIST} if self._block is not None and self._block.search(folded) else set()))

    def check(self, text: str) -> str | None:
        """The first blocked term in a text, as the operator wrote it."""
        if self._block is None:
            return None
        match = self._block.search(text.casefold())
        return self._block.names[match[0]] if match else None

    @property
    def masks_output(self) -> bool:
        return self._mask is not None

    def output_mask(self) -> OutputMask | None:
        """For one text of an answer; None when nothing is masked."""
        return OutputMask(self._mask) if self._mask is not None else None

    def bare_mask(self) -> OutputMask | None:
        """For JSON outside of its strings: no number or bracket is hidden, which would break it."""
        return OutputMask(self._bare_mask) if self._bare_mask is not None else None


def _may_be_json(term: str) -> bool:
    """Whether it can stand in valid JSON outside of strings."""
    return all(any(letters in word for word in _JSON_WORDS) for letters in re.findall(r"[^\W\d_]+", term.casefold()))


class OutputMask:
    """Puts `***` for each term in a text that arrives in pieces; the other text stays as it is.

    The leftmost term is replaced first, the longest of those that start there. Text is held back while it may be
    the beginning of a term, or of a longer one than it already is: less than the longest term's length.
    """

    def __init__(self, terms: _Terms) -> None:
        self._terms = terms
        self._held = ""  # what may be the beginning of a term,
        self._num_sent = 0  # and how much of it has been let out already

    @property
    def num_held(self) -> int:
        return len(self._held) - self._num_sent

    def feed(self, text: str) -> str:
        if not self._held and not self._terms.first_letters(text.casefold()):
            return text
        return self._advance(self._held + text, last=False)

    def flush(self) -> str:
        """What was held back. Should the text go on, a term that was let out in part is masked from there on."""
        return self._advance(self._held, last=True) if self._held else ""

    def _advance(self, text: str, *, last: bool) -> str:
        folded, sent = _Folded(text), self._num_sent
        done: list[str] = []
        position = 0  # in folded text, at the start of a character
        first_open = self._first_open(folded.text, 0)
        while (match := self._terms.search(folded.text, position)) and (last or match.start() < first_open):
            done += text[max(sent, folded.first(position)) : folded.first(match.start())], MASK
            position = folded.start_after(match.end())
            first_open = self._first_open(folded.text, position)
        hold = folded.first(first_open)
        end = len(text) if last else max(sent, hold)
        self._held, self._num_sent = text[hold:], end - hold
        return "".join([*done, text[max(sent, folded.first(position)) : end]])

    def _first_open(self, text: str, position: int) -> int:
        """The first place from which the text's end may grow into a term; the text's length if there is none."""
        for start in range(max(position, len(text) - self._terms.longest + 1), len(text)):
            if text[start:] in self._terms.prefixes:
                return start
        return len(text)


class _Folded:
    """A text's folded form, and which of its characters each folded one comes from."""

    def __init__(self, text: str) -> None:
        self.text = text.casefold()
        self._origins: list[int] | None = None  # None: one for one
        if len(self.text) != len(text) or not text.isascii():
            self._origins = [i for i, character in enumerate(text) for _ in character.casefold()]
            self._origins.append(len(text))

    def first(self, position: int) -> int:
        """The original character at a folded position."""
        return position if self._origins is None else self._origins[position]

    def start_after(self, end: int) -> int:
        """Where the first character that lies wholly behind a match starts."""
        if self._origins is None:
            return end
        while end < len(self.text) and self._origins[end] == self._origins[end - 1]:
            end += 1
        return end
