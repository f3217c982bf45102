"""The admission queue: bounded, fair over accounts, and honest about who can still be served in time."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator

from batching.sequence import Sequence

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
MAX_REMEMBERED_ACCOUNTS = 10_000


class ServedTokens:
    """Virtual token counters (Sheng et al., Fairness in Serving Large Language Models, arXiv:2401.00588).

    The account with the least service is next. One that comes back from idleness is lifted to the least of those
    that are waiting, so that nobody saves up service by staying away.
    """

    def __init__(self) -> None:
        self._served: OrderedDict[str, int] = OrderedDict()

    def __getitem__(self, account: str) -> int:
        return self._served.get(account, 0)

    def charge(self, account: str, input_tokens: int = 0, output_tokens: int = 0) -> None:
        served = self[account] + INPUT_WEIGHT * input_tokens + OUTPUT_WEIGHT * output_tokens
        self._set(account, served)

    def lift(self, account: str, waiting: Iterator[str]) -> None:
        self._set(account, max(self[account], min((self[other] for other in waiting), default=0)))

    def _set(self, account: str, served: int) -> None:
        self._served[account] = served
        self._served.move_to_end(account)
        while len(self._served) > MAX_REMEMBERED_ACCOUNTS:
            self._served.popitem(last=False)


class DrainRate:
    """How fast the queue has been emptying lately, for a truthful retry-after."""

    def __init__(self, window: int = 64) -> None:
        self._departures: deque[float] = deque(maxlen=window)

    def record(self, now: float) -> None:
        self._departures.append(now)

    def seconds_for(self, count: int, now: float) -> float:
        """Time in which `count` requests leave; 1 s while nothing is known."""
        if len(self._departures) < 2:
            return 1.0
        elapsed = max(now - self._departures[0], 1e-3)
        return count * elapsed / len(self._departures)


class AdmissionQueue:
    """Sequences that wait for their first step: priority classes, in each the least served account first.

    Within an account the order is that of arrival. A sequence expires when it has waited `timeout` seconds, or
    when its own deadline passes: work that nobody waits for any more is not started.
    """

    def __init__(self, max_waiting: int, timeout: float) -> None:
        self.max_waiting = max_waiting
        self.timeout = timeout
        self.served = ServedTokens()
        self._drain = DrainRate()
        self._classes: dict[int, dict[str, deque[Sequence]]] = {}
        self._waiting: dict[str, Sequence] = {}
        self._expiries: list[tuple[float, int, str]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self.max_waiting

    def retry_after_ms(self, now: float) -> int:
        """When a tenth of a full queue will have left: by then others who were refused find a place too."""
        seconds = self._drain.seconds_for(max(1, len(self._waiting) // 10), now)
        return round(1000 * min(max(seconds, 0.05), 60.0))

    def put(self, sequence: Sequence) -> None:
        """Add to the end of its account's line. The caller has asked `is_full`."""
        request = sequence.request
        accounts = self._classes.setdefault(request.priority, {})
        if request.account not in accounts:
            self.served.lift(request.account, iter(accounts))
            accounts[request.account] = deque()
        accounts[request.account].append(sequence)
        self._waiting[request.request_id] = sequence
        expiry = min(request.arrival + self.timeout, request.deadline)
        heapq.heappush(self._expiries, (expiry, sequence.sequence_id, request.request_id))

    def peek(self) -> Sequence | None:
        """Who is next."""
        if not self._waiting:
            return None
        accounts = self._classes[min(self._classes)]
        return accounts[min(accounts, key=self.served.__getitem__)][0]

    def pop(self, sequence: Sequence, now: float) -> None:
        """Take out the sequence that `peek` gave: it starts."""
        self._drain.record(now)
        self._remove(sequence)

    def remove(self, request_id: str) -> Sequence | None:
        """Take out a sequence that was aborted while it waited."""
        if (sequence := self._waiting.get(request_id)) is not None:
            self._remove(sequence)
        return sequence

    def pop_expired(self, now: float) -> list[Sequence]:
        expired = []
        while self._expiries and self._expiries[0][0] <= now:
            request_id = heapq.heappop(self._expiries)[2]
            if (sequence := self.remove(request_id)) is not None:
                expired.append(sequence)
        return expired

    def _remove(self, sequence: Sequence) -> None:
        request = sequence.request
        del self._waiting[request.request_id]
        accounts = self._classes[request.priority]
        line = accounts[request.account]
        line.remove(sequence)
        if not line:
            del accounts[request.account]
        if not accounts:
            del self._classes[request.priority]
        if len(self._expiries) > 2 * len(self._waiting) + 64:
            self._drop_stale_expiries()

    def _drop_stale_expiries(self) -> None:
        """Those who left early leave their entry in the heap; without this it would grow with traffic."""
        self._expiries = [entry for entry in self._expiries if entry[2] in self._waiting]
        heapq.heapify(self._expiries)

    def check_integrity(self) -> None:
        lines = [line for accounts in self._classes.values() for line in accounts.values()]
        assert all(lines), "an empty line is kept"
        assert {id(s) for line in lines for s in line} == {id(s) for s in self._waiting.values()}
        assert {entry[2] for entry in self._expiries} >= set(self._waiting), "a waiting sequence never expires"
