"""Places for a few at a time, by turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class Turns:
    """A place that becomes free goes to the account whose last one is longest ago, and there to who came first.

    Belongs to one event loop.
    """

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by account; the next one first

    def num_waiting(self, account: str) -> int:
        return len(self._waiting.get(account, ()))

    async def take(self, account: str) -> None:
        """Once it returns, `give_back` is owed."""
        if self._num_free:
            self._num_free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(account, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._leave(account, place)
            else:
                self.give_back()  # it came in the moment of leaving
            raise

    def give_back(self) -> None:
        if not self._waiting:
            self._num_free += 1
            return
        account, places = next(iter(self._waiting.items()))
        place = places.popleft()
        self._waiting.move_to_end(account)
        if not places:
            del self._waiting[account]
        if place.cancelled():  # and has not been able to leave yet
            self.give_back()
        else:
            place.set_result(None)

    def _leave(self, account: str, place: asyncio.Future[None]) -> None:
        places = self._waiting.get(account)
        if places is not None and place in places:
            places.remove(place)
            if not places:
                del self._waiting[account]
