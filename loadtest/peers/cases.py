"""What is asked of everyone: small enough to end, large enough to be told from noise."""

from dataclasses import dataclass, replace

from loadtest.loads import ClosedLoop
from loadtest.workloads import Drawn, RequestSize, WorkloadName

STREAMS = (1, 4, 16)
FIXED, CHAT, PROMPT, CACHED = "fixed", "chat", "prompt", "cached"
PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Case:
    """`variant`: words of its own, so that no case meets its prompts in a cache. `one_wave`: all start at once, and
    have one length, so that there is a time in which all are being answered."""

    name: str
    workload: Drawn
    concurrency: int
    requests: int
    variant: int
    one_wave: bool = False

    @property
    def load(self) -> ClosedLoop:
        return ClosedLoop(self.concurrency, self.name)

    @property
    def key(self) -> str:
        return f"{self.name} at {self.concurrency}"

    @property
    def suits_slow(self) -> bool:
        """Asked of those, too, of whom the whole would take minutes."""
        return self.name == PROMPT or (self.one_wave and self.concurrency in (STREAMS[0], STREAMS[-1]))

    def again(self) -> "Case":
        """The same prompts once more."""
        return replace(self, name=CACHED)


def cases(*, quick: bool) -> list[Case]:
    fixed, chat = RequestSize(64, 32 if quick else 48), RequestSize(256, 48 if quick else 64)
    found = [
        Case(FIXED, Drawn(WorkloadName.FIXED, fixed), streams, streams, variant, one_wave=True)
        for variant, streams in enumerate(STREAMS)
    ]
    counts = {16: 16} if quick else {1: 2, 4: 6, 16: 24}
    found += [
        Case(CHAT, Drawn(WorkloadName.CHAT, chat), streams, count, 3 + variant)
        for variant, (streams, count) in enumerate(counts.items())
    ]
    prompt = Drawn(WorkloadName.FIXED, RequestSize(PROMPT_TOKENS, 2))
    return [*found, Case(PROMPT, prompt, 1, 2 if quick else 3, 6)]
