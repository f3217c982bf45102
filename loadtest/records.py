"""What one request asked for and what came of it: the values every other module here passes on."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a workload.

    `prompt` is text, whose `input_tokens` are approximate, since a foreign server's tokenizer is unknown; or token
    ids, exactly so many. `at_s`: when a trace has it arrive, from the trace's first request.
    """

    prompt: str | tuple[int, ...]
    input_tokens: int
    max_tokens: int
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Token counts as the server reported them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed. `reason` is short and of few values, to count by; `detail` is one example."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request, as the client saw it.

    All times are `time.perf_counter()` seconds of this process. `start_s` is the moment at which the load wanted
    the request sent: in an open loop that may lie before `sent_s`, and latencies count from it, so that a
    generator which falls behind hides nothing (coordinated omission). `content_times_s` holds the arrival of each
    event that carried output, in order; an event may carry several tokens. `end_s` is the arrival of `[DONE]`, or
    the moment of the failure.
    """

    planned: PlannedRequest
    start_s: float
    end_s: float
    content_times_s: list[float] = field(default_factory=list)
    usage: TokenUsage | None = None
    failure: Failure | None = None
    sent_s: float | None = None  # None: at `start_s`

    @property
    def lateness_s(self) -> float:
        """How long after its moment the request was sent."""
        return 0.0 if self.sent_s is None else self.sent_s - self.start_s

    @property
    def output_tokens(self) -> int:
        """The server's count where it gave one, else the number of events (a lower bound on tokens)."""
        if self.usage is not None and self.usage.completion_tokens > 0:
            return self.usage.completion_tokens
        return len(self.content_times_s)

    @property
    def prompt_tokens(self) -> int | None:
        return self.usage.prompt_tokens if self.usage is not None else None


class BenchError(Exception):
    """The run cannot start or go on; the message is one line for the user and never holds the key."""


def one_line(text: str, *, limit: int = 200, secret: str | None = None) -> str:
    """A server's words made safe to print: one printable line, cut at `limit`, without the key."""
    if secret:
        text = text.replace(secret, "***")
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
