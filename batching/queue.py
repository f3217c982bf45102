"""The admission queue: bounded, fair over accounts, and honest about who can still be served in time."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from engines.types import BACKGROUND_PRIORITY, GenerationRequest

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
MAX_REMEMBERED_ACCOUNTS = 10_000


class ServedTokens:
    """Virtual token counters (Sheng et al., Fairness in Serving Large Language Models, arXiv:2401.00588).

    The account with the least service is next. One that comes back from idleness is lifted to the least of those
    that are waiting, or to the one that started last when nobody is, so that nobody saves up service by staying away.
    """

    def __init__(self) -> None:
        self._served: OrderedDict[str, int] = OrderedDict()  # those that came longest ago first
        self._last_started = ""

    def __getitem__(self, account: str) -> int:
        return self._served.get(account, 0)

    def __len__(self) -> int:
        return len(self._served)

    def charge(self, account: str, input_tokens: int = 0, output_tokens: int = 0) -> None:
        served = self._served.get(account, 0) + INPUT_WEIGHT * input_tokens + OUTPUT_WEIGHT * output_tokens
        self._served[account] = served

    def lift(self, account: str, waiting: Iterable[str]) -> None:
        floor = min((self[other] for other in waiting), default=self[self._last_started])
        self._served[account] = max(self[account], floor)
        self._served.move_to_end(account)
        while len(self._served) > MAX_REMEMBERED_ACCOUNTS:
            self._served.popitem(last=False)

    def start(self, account: str) -> None:
        """One of the account's sequences leaves the queue to be served."""
        self._last_started = account


class DrainRate:
    """How fast the queue empties while it holds somebody, for a truthful retry-after."""

    def __init__(self, window: int = 64) -> None:
        self._departures: deque[tuple[float, int]] = deque(maxlen=window)  # a moment, and how many left at it

    def clear(self) -> None:
        self._departures.clear()

    def record(self, now: float) -> None:
        same_moment = self._departures and self._departures[-1][0] == now
        count = self._departures.pop()[1] if same_moment else 0
        self._departures.append((now, count + 1))

    def seconds_for(self, count: int, now: float) -> float | None:
        """Time in which `count` requests leave; None while nothing is known.

        The first moment only starts the clock: those who left at it may just have filled an idle engine.
        """
        if len(self._departures) < 2:
            return None
        first, *later = self._departures
        return count * (now - first[0]) / sum(left for _, left in later)


class Queued(Protocol):
    """What can wait here: sequences, or requests for vectors."""

    sequence_id: int
    request: GenerationRequest


Item = TypeVar("Item", bound=Queued)


class AdmissionQueue(Generic[Item]):
    """Sequences that wait for their first step: priority classes, in each the least served account first.

    Within an account the order is that of arrival. A sequence expires when it has waited `timeout` seconds, or
    when its own deadline passes: work that nobody waits for any more is not started. What runs in the background waits
    up to its deadline, takes no place of others in the queue, and what it is served counts among its like alone.
    """

    def __init__(self, max_waiting: int, timeout: float) -> None:
        self.max_waiting = max_waiting
        self.timeout = timeout
        self.served = ServedTokens()
        self.served_in_background = ServedTokens()
        self._num_background = 0
        self._drain = DrainRate()
        self._classes: dict[int, dict[str, deque[Item]]] = {}
        self._waiting: dict[str, Item] = {}
        self._expiries: list[tuple[float, int, str]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def is_full(self, request: GenerationRequest) -> bool:
        """Whether there is no place for one like this."""
        return self.num_waiting(request.is_background) >= self.max_waiting

    def num_waiting(self, is_background: bool) -> int:
        return self._num_background if is_background else len(self._waiting) - self._num_background

    def charge(self, request: GenerationRequest, input_tokens: int = 0, output_tokens: int = 0) -> None:
        self._served_to(request).charge(request.account, input_tokens, output_tokens)

    def served_to(self, request: GenerationRequest) -> int:
        """What the request's account was served among its like."""
        return self._served_to(request)[request.account]

    def _served_to(self, request: GenerationRequest) -> ServedTokens:
        return self.served_in_background if request.is_background else self.served

    def retry_after_ms(self, now: float) -> int:
        """When a tenth of a full queue will have left: by then others who were refused find a place too."""
        seconds = self._drain.seconds_for(max(1, len(self._waiting) // 10), now)
        if seconds is None:  # nobody has left yet: that may take as long again
            oldest = next(iter(self._waiting.values()), None)
            seconds = max(1.0, now - oldest.request.arrival) if oldest else 1.0
        return round(1000 * min(max(seconds, 0.05), 60.0))

    def put(self, sequence: Item) -> None:
        """Add to the end of its account's line. The caller has asked `is_full`."""
        request = sequence.request
        if not self._waiting:
            self._drain.clear()  # of how fast an empty queue could have emptied nothing is known
        accounts = self._classes.setdefault(request.priority, {})
        if request.account not in accounts:
            self._served_to(request).lift(request.account, accounts)
            accounts[request.account] = deque()
        accounts[request.account].append(sequence)
        self._waiting[request.request_id] = sequence
        self._num_background += request.is_background
        patience = math.inf if request.is_background else self.timeout
        expiry = min(request.arrival + patience, request.deadline)
        heapq.heappush(self._expiries, (expiry, sequence.sequence_id, request.request_id))

    def peek(
        self,
        may_start: Callable[[Item], bool] = lambda item: True,
        *,
        is_background: bool | None = None,
        but: str | None = None,
    ) -> Item | None:
        """Who is next, of those that may start: the others keep their places, and are overtaken. Of the background, of
        all others, or of all; `but` for one account."""
        for priority in sorted(self._classes):
            in_background = priority >= BACKGROUND_PRIORITY
            if is_background not in (None, in_background):
                continue
            served = self.served_in_background if in_background else self.served
            accounts = self._classes[priority]
            if but in accounts:
                accounts = {account: line for account, line in accounts.items() if account != but}
            if not accounts:
                continue
            first = accounts[min(accounts, key=served.__getitem__)][0]
            if may_start(first):
                return first
            for account in sorted(accounts, key=served.__getitem__):
                if (found := next(filter(may_start, accounts[account]), None)) is not None:
                    return found
        return None

    def __iter__(self) -> Iterator[Item]:
        """Everybody who waits, in order of arrival."""
        return iter(self._waiting.values())

    def pop(self, sequence: Item, now: float) -> None:
        """Take out one that starts: the sequence that `peek` gave, or one that runs together with it."""
        self._remove(sequence)
        self._drain.record(now)
        self._served_to(sequence.request).start(sequence.request.account)

    def remove(self, request_id: str) -> Item | None:
        """Take out a sequence that was aborted while it waited."""
        if (sequence := self._waiting.get(request_id)) is not None:
            self._remove(sequence)
        return sequence

    def pop_expired(self, now: float, is_patient: Callable[[Item], bool] = lambda item: False) -> list[Item]:
        """Who is patient has no timeout, only its deadline."""
        expired = []
        while self._expiries and self._expiries[0][0] <= now:
            _, number, request_id = heapq.heappop(self._expiries)
            if (sequence := self._waiting.get(request_id)) is None:
                continue
            if now < sequence.request.deadline and is_patient(sequence):
                heapq.heappush(self._expiries, (sequence.request.deadline, number, request_id))
            else:
                self._remove(sequence)
                expired.append(sequence)
        return expired

    def _remove(self, sequence: Item) -> None:
        request = sequence.request
        del self._waiting[request.request_id]
        self._num_background -= request.is_background
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
        assert self._num_background == sum(s.request.is_background for s in self._waiting.values())
        assert {entry[2] for entry in self._expiries} >= set(self._waiting), "a waiting sequence never expires"
