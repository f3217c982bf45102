"""One streamed answer, read without I/O: which events carried output, the usage, how it ended."""

import msgspec

from loadtest.records import Failure, TokenUsage
from loadtest.sse import SSEEvent, SSEParser

DONE = b"[DONE]"
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # all that decoding raises


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[object] | None = None

    def has_output(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.refusal or self.tool_calls)


class _Choice(msgspec.Struct):
    text: str | None = None  # completions
    delta: _Delta | None = None  # chat
    finish_reason: str | None = None

    def has_output(self) -> bool:
        return bool(self.text) or (self.delta is not None and self.delta.has_output())


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    """The few fields a load generator needs of a chunk; all else is skipped, not built."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None
    kind: str | None = msgspec.field(default=None, name="object")


_CHUNK = msgspec.json.Decoder(_Chunk)


class AnswerReader:
    """Collects one answer. A role-only or empty delta is no output, so it starts no TTFT.

    All events of one `feed` share its time: they arrived together, and their gaps are 0. Without `says_done` a body
    may end behind a finish_reason.
    """

    def __init__(self, *, says_done: bool = True) -> None:
        self._says_done = says_done
        self.content_times_s: list[float] = []
        self.usage: TokenUsage | None = None
        self.done_s: float | None = None
        self.failure: Failure | None = None
        self._finished = False
        self._parser = SSEParser()
        self._num_events = 0

    @property
    def done(self) -> bool:
        return self.done_s is not None

    def feed(self, chunk: bytes, now_s: float) -> None:
        """`now_s`: when the bytes arrived. What follows `[DONE]` or an error is ignored."""
        for event in self._parser.feed(chunk):
            if self.done or self.failure is not None:
                return
            self._num_events += 1
            self._take(event, now_s)

    def end_of_body(self, content_type: str) -> Failure | None:
        """The verdict once the body has ended by itself; None is success."""
        if self.done or self.failure is not None:
            return self.failure
        if self._num_events == 0:
            return Failure("not an event stream", f"the body ended without an event ({content_type})")
        if self._finished and not self._says_done:
            return None
        return Failure("cut stream", f"the body ended without [DONE] after {self._num_events} events")

    def _take(self, event: SSEEvent, now_s: float) -> None:
        if event.data.strip() == DONE:
            self._end(now_s)
            return
        try:
            chunk = _CHUNK.decode(event.data)
        except UNREADABLE as error:
            self.failure = Failure("malformed event", f"{error}: {event.data!r}")
            return
        if chunk.error is not None or chunk.kind == "error" or event.name == b"error":
            self.failure = describe_error(event.data).as_failure("error event")
            return
        self._note(chunk, now_s)

    def _note(self, chunk: _Chunk, now_s: float) -> None:
        for choice in chunk.choices or ():
            if choice.has_output():
                self.content_times_s.append(now_s)
            self._finished |= choice.finish_reason is not None
        if chunk.usage is not None:  # some servers repeat it on every chunk: the last one counts
            self.usage = TokenUsage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def _end(self, now_s: float) -> None:
        """An answer may be empty when the model stops at once, but then it says why it finished."""
        if self.content_times_s or self._finished:
            self.done_s = now_s
        else:
            self.failure = Failure("empty stream", "[DONE] without any output or finish_reason")


class ServerError(msgspec.Struct):
    """An error in a server's own words, neither cut nor cleaned: `label` is its code or type, or empty."""

    label: str
    message: str

    def as_failure(self, prefix: str) -> Failure:
        return Failure(f"{prefix} {self.label}".rstrip(), self.message)


def describe_error(body: bytes) -> ServerError:
    """Read OpenAI's envelope, a flat error object, FastAPI's `detail`, or any other text."""
    try:
        decoded = msgspec.json.decode(body)
    except UNREADABLE:
        return ServerError("", body.decode("utf-8", "replace"))
    inner = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if not isinstance(inner, dict):
        return ServerError("", str(inner))
    label = next((inner[key] for key in ("code", "type") if isinstance(inner.get(key), str)), "")
    message = inner.get("message") or inner.get("detail") or inner
    return ServerError(label, str(message))
