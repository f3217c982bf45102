"""Who follows a response is given its events in bites, and all of them."""

from __future__ import annotations

from typing import Any

import pytest

from server.responses import following
from server.responses.following import RunSource, Source, StoredSource
from tests.server.store.test_responses import response

EVENTS = [b'{"type":"t","sequence_number":%d}' % number for number in range(10)]


class PaperRun:
    has_ended = True
    events = EVENTS

    async def news(self, num_known: int, patience: float) -> list[bytes]:
        return self.events[num_known:]


class PaperStore:
    """Two events a row."""

    async def get(self, account_id: str, response_id: str) -> Any:
        return response(response_id, status="completed", lease_until=None)

    async def events_after(self, response_id: str, sequence_number: int, num_rows: int) -> list[bytes]:
        first = sequence_number + 1
        return EVENTS[first : first - first % 2 + 2 * num_rows]


def source(kind: str, after: int) -> Source:
    if kind == "run":
        return RunSource(PaperRun(), after)  # type: ignore[arg-type]
    return StoredSource(PaperStore(), response("resp_1"), after, lambda: False)


@pytest.mark.parametrize("kind", ["run", "stored"])
@pytest.mark.parametrize("after", [-1, 0, 3, 9, 100])
async def test_all_in_bites(kind: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_EVENTS", 4)
    monkeypatch.setattr(following, "MAX_ROWS", 2)
    followed, bites = source(kind, after), []
    while not followed.has_ended:
        bites.append(await followed.next(0.01))
    assert [event for bite in bites for event in bite] == EVENTS[after + 1 :]
    assert max(map(len, bites), default=0) <= 4
