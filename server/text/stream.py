"""One answer's way from token ids, or an engine's text, to its text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from server.text.detokenizer import IncrementalDetokenizer
from server.text.stop import StopMatcher


class TextPiece(msgspec.Struct, frozen=True):
    """Text to send. `stop`: this stop string was found, this is the last text, the engine can be aborted."""

    text: str
    stop: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None


class TextStream:
    """Detokenizes, then looks for stop strings: in what the model wrote, whatever its client reads of it.

    One object an answer; not for several threads at once.

    As in vLLM, no stop string counts before `min_tokens` tokens: it is sought in the text that comes after them.
    """

    __slots__ = ("_detokenizer", "_num_unstoppable", "_over", "_stop")

    def __init__(self, detokenizer: IncrementalDetokenizer, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer
        self._stop = StopMatcher(stops) if any(stops) else None
        self._num_unstoppable = min_tokens if self._stop is not None else 0  # tokens still to come
        self._over = False

    def add(self, ids: Sequence[int]) -> TextPiece:
        """The text that these ids let out; may be empty. After a stop everything is."""
        if self._stop is None:
            return TextPiece(self._detokenizer.add(ids))
        if self._num_unstoppable:
            return self._add_unstoppable(ids)
        return self._step(self._detokenizer.add(ids), last=False)

    def add_text(self, text: str, num_tokens: int) -> TextPiece:
        """The same for an engine that gives text: what `num_tokens` tokens add. `add` and this do not mix."""
        if self._stop is None:
            return TextPiece(text)
        if not self._num_unstoppable:
            return self._step(text, last=False)
        # Where in the text the last token without a right to stop ends, nobody knows: it counts as a whole.
        self._num_unstoppable = max(0, self._num_unstoppable - num_tokens)
        return TextPiece(text)

    def _add_unstoppable(self, ids: Sequence[int]) -> TextPiece:
        early, later = ids[: self._num_unstoppable], ids[self._num_unstoppable :]
        self._num_unstoppable -= len(early)
        text = self._detokenizer.add(early)
        rest = self.add(later) if later else TextPiece("")
        return TextPiece(text + rest.text, rest.stop)

    def finish(self) -> TextPiece:
        """At the end of the answer: what was held back. A stop string may be completed here too."""
        return self._step(self._detokenizer.finish(), last=True)

    def _step(self, text: str, *, last: bool) -> TextPiece:
        if self._over:
            return TextPiece("")
        stop = None
        if self._stop is not None and not self._num_unstoppable:
            step = self._stop.feed(text)
            text, stop = step.text, step.matched
            if last and stop is None:
                text += self._stop.flush()
        self._over = last or stop is not None
        return TextPiece(text, stop)
