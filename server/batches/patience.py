"""When a line of a batch is tried again: what others would be told to try later is tried later, within the window."""

from __future__ import annotations

from collections.abc import Mapping

TRY_LATER = frozenset({408, 429, 503})  # quotas, full queues, engines that start
FAULTS = frozenset({500, 502, 504})
MAX_FAULTS = 3  # a line that fails so often is what fails
SHORTEST, LONGEST = 0.05, 60.0  # seconds


def seconds_to_wait(status: int, headers: Mapping[str, str], num_faults: int) -> float | None:
    """Before the next attempt; None: this answer is the line's result. `num_faults` counts this answer too."""
    if status in TRY_LATER:
        return min(max(_retry_after(headers), SHORTEST), LONGEST)
    if status in FAULTS and num_faults < MAX_FAULTS:
        return float(2**num_faults)
    return None


def _retry_after(headers: Mapping[str, str]) -> float:
    milliseconds = headers.get("retry-after-ms", "")
    return int(milliseconds) / 1000 if milliseconds.isdecimal() else 1.0
