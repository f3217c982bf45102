"""Small changes of wording that keep a question's meaning, so that a tiny model learns to look past them."""

import random
import re
from collections.abc import Collection

from question_set import Question, normalise

OPENERS = (
    "please tell me:", "hi,", "hello,", "quick question:", "can you tell me", "could you tell me",
    "i want to know", "i would like to know",
    "question:", "hey,", "one more thing:", "please explain", "so,", "ok,", "tell me,",
    "and", "sorry,", "i wonder,", "do you know", "another question:", "please,", "now", "also,", "but",
)  # fmt: skip
CLOSERS = (
    "please", "thanks", "in penstock", "with penstock", "exactly", "here", "then", "for me", "briefly",
    "in this server", "again", "by the way", "thank you",
)  # fmt: skip
SMALL_TALK_OPENERS = (
    "hi,", "hey,", "hello,", "ok,", "so,", "please", "please,", "well,", "can you", "could you", "tell me,", "now",
)  # fmt: skip

# Words of one row may replace each other in any question without changing which answer is right.
SYNONYMS = (
    ("how do i", "how can i", "how to", "how would i", "how should i", "how does one", "how do we", "how could i",
     "what is the way to", "show me how to", "i want to", "i need to", "explain how to", "what do i do to"),
    ("what is", "what's", "whats", "tell me about", "explain", "describe", "define"),
    ("create", "make", "generate"),
    ("delete", "remove"),
    ("api key", "key", "access key"),
    ("which", "what"),
    ("happens if", "happens when", "happens once", "is the result when"),
    ("maximum", "max", "largest", "biggest", "highest"),
    ("longest", "maximum", "max"),
    ("client", "caller"),
    ("does penstock", "can penstock", "will penstock"),
    ("does penstock support", "do you support", "can i use", "is there support for", "does it support"),
    ("why", "how come", "for what reason", "why is it that"),
    ("where", "in which place"),
    ("need", "have to have", "require"),
    ("several", "many", "multiple"),
    ("show", "print", "display", "give me"),
    ("configure", "set", "set up", "adjust"),
    ("change", "modify", "alter"),
    ("allowed", "permitted", "possible"),
    ("permitted", "accepted", "allowed"),
    ("use", "work with"),
    ("penstock", "the server", "this server", "it"),
    ("config", "configuration"),
    ("do you", "can you", "does penstock"),
    ("wrong", "bad", "incorrect"),
    ("crashes", "dies", "fails"),
    ("header", "http header"),
    ("option", "setting", "flag"),
    ("mean", "stand for", "signify"),
    ("quickly", "fast"),
    ("benefits", "advantages", "strengths", "merits"),
    ("purpose", "use", "point", "aim"),
    ("address", "url"),
    ("contain", "include", "hold"),
    ("kinds", "types", "sorts"),
    ("kind of", "type of", "sort of"),
    ("structure", "layout", "organisation"),
    ("processed", "handled", "treated"),
    ("difference between", "distinction between"),
    ("supported", "available", "offered"),
    ("enable", "turn on", "activate", "switch on"),
    ("disable", "turn off", "deactivate", "switch off"),
    ("find", "see", "look up"),
    ("stored", "saved", "kept"),
    ("refused", "rejected", "denied"),
    ("exceed", "go over", "go above"),
    ("error", "error code", "failure"),
    ("running", "active"),
    ("customer", "tenant", "user"),
    ("get", "obtain", "receive"),
    ("send", "submit", "post"),
    ("software", "program", "application"),
    ("machine", "computer", "host"),
    ("need", "want"),
    ("long", "large"),
    ("one", "a single", "1"),
    ("certain", "specific", "particular"),
)  # fmt: skip
FILLER_WORDS = frozenset(
    ("the", "a", "an", "is", "are", "am", "be", "do", "does", "did", "i", "my", "me", "you", "your", "it", "its",
     "can", "could", "will", "would", "should", "have", "has", "there", "to", "of", "in", "for", "by", "at",
     "on", "with", "about", "and", "that", "this", "when", "get", "please", "penstock", "penstock's")
)  # fmt: skip
_ROW_OF = {phrase: row for row in reversed(SYNONYMS) for phrase in row}
_ANY_SYNONYM = re.compile(
    r"\b(" + "|".join(re.escape(p) for p in sorted(_ROW_OF, key=len, reverse=True)) + r")\b", re.IGNORECASE
)


class Augmenter:
    """Rewords training phrasings at random, and never into a phrasing that is held out."""

    def __init__(self, rng: random.Random, held_out: Collection[str]) -> None:
        self.rng = rng
        self.held_out = {normalise(phrasing) for phrasing in held_out}

    def phrasing_of(self, question: Question) -> str:
        phrasing = self.rng.choice(question.phrasings)
        if self._chance(0.25):
            return phrasing
        reworded = self._polish(self._small_talk(phrasing) if question.small_talk else self._reword(phrasing))
        return phrasing if normalise(reworded) in self.held_out else reworded

    def _small_talk(self, text: str) -> str:
        if self._chance(0.15) and text.isascii():
            text = f"{self.rng.choice(SMALL_TALK_OPENERS)} {text[0].lower()}{text[1:]}"
        if self._chance(0.3) and text.count(" ") >= 3:
            text = self._drop_words(text)
        return self._misspell(text) if self._chance(0.05) else text

    def _reword(self, text: str) -> str:
        if self._chance(0.6):
            text = _ANY_SYNONYM.sub(self._swap, text)
        if self._chance(0.4):
            text = self._drop_words(text)
        if self._chance(0.2):
            text = f"{self.rng.choice(OPENERS)} {text[0].lower()}{text[1:]}"
        if self._chance(0.1):
            text = f"{text.rstrip('?.! ')} {self.rng.choice(CLOSERS)}"
        return self._misspell(text) if self._chance(0.05) else text

    def _swap(self, match: re.Match[str]) -> str:
        return self.rng.choice(_ROW_OF[match[0].lower()]) if self._chance(0.4) else match[0]

    def _drop_words(self, text: str) -> str:
        rate = self.rng.choice((0.2, 0.4, 0.6))
        kept = [w for w in text.split() if not self._chance(rate if w.lower() in FILLER_WORDS else rate / 8)]
        return " ".join(kept) if len(kept) >= 2 else text

    def _misspell(self, text: str) -> str:
        """Swap two neighbouring letters, or lose one."""
        if len(text) < 8:
            return text
        at = self.rng.randrange(1, len(text) - 2)
        swapped = text[at + 1] + text[at] if self._chance(0.5) else text[at]
        return text[:at] + swapped + text[at + 2 :]

    def _polish(self, text: str) -> str:
        """Vary case and the punctuation at the end, as people do."""
        if self._chance(0.35):
            text = text.lower()
        elif self._chance(0.5):
            text = text[0].upper() + text[1:]
        ending = self.rng.choice(("", "", "?", "?", ".", "!", None))
        return text if ending is None else text.rstrip("?.! ") + ending

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability
