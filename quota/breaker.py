"""When to stop asking a server that does not answer."""

from dataclasses import dataclass

FAILURES = 3
PROBE_EVERY = 0.5  # seconds


@dataclass(slots=True)
class Breaker:
    """Opens after `FAILURES` failures in a row. While it is open nothing is asked; a probe closes it."""

    is_open: bool = False
    num_failures: int = 0

    def succeeded(self) -> None:
        self.is_open, self.num_failures = False, 0

    def failed(self) -> bool:
        """Answers whether it opened just now."""
        self.num_failures += 1
        opens = self.num_failures >= FAILURES and not self.is_open
        self.is_open |= opens
        return opens
