"""What is written down of a running response, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
import pytest

from server.errors import Overloaded
from server.responses import recorder as recorder_module
from server.responses.recorder import Kept, Recorder
from server.responses.scribe import Scribe
from server.store.responses import Progress, Standing
from server.wire.response_body import COMPLETED
from tests.server.responses.test_answer import body

INPUT = [{"id": "msg_1", "type": "message"}]


@dataclass
class PaperStore:
    """A database that does as it is told."""

    batches: list[list[Progress]] = field(default_factory=list)
    failures: int = 0  # so many writes fail
    refused: str = ""  # writes of this status fail
    poison: str = ""  # a response that it refuses
    standing: Standing = field(default_factory=lambda: Standing(is_ours=True))
    hold: asyncio.Event | None = None

    async def write(self, news: Sequence[Progress]) -> list[Standing]:
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        if any(progress.status == self.refused for progress in news):
            raise ConnectionError
        if any(progress.response_id == self.poison for progress in news):
            raise ValueError("poison")
        self.batches.append(list(news))
        return [self.standing for _ in news]

    @property
    def written(self) -> list[Progress]:
        return [progress for batch in self.batches for progress in batch]


def recorder(store: PaperStore) -> Recorder:
    return Recorder(Scribe(store), Kept("acct", "gw", timedelta(days=1), INPUT, None), body())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_EVERY", 0.01)


ENDED = msgspec.structs.replace(body(), status=COMPLETED, output=[])


async def test_events_are_written_in_bites_and_the_end_with_them() -> None:
    store = PaperStore()
    written = recorder(store)
    await written.begin()
    for number in range(5):
        written.add([b"%d" % number], body())
    await asyncio.sleep(0.05)
    written.add([b"5", b"6"], ENDED)
    await written.end()
    first, last = store.written[0], store.written[-1]
    assert first.opening is not None
    assert first.opening.inputs == INPUT
    assert all(progress.opening is None for progress in store.written[1:])
    events = [(progress.first, list(progress.events)) for progress in store.written if progress.events]
    assert [number for first, some in events for number, _ in enumerate(some, first)] == list(range(7))
    assert len(events) < 7
    assert (last.status, last.lease_until) == ("completed", None)


async def test_an_end_is_tried_again_and_then_refused() -> None:
    store = PaperStore(failures=2)
    written = recorder(store)
    written.add([b"0"], ENDED)
    await written.end()
    assert [list(progress.events) for progress in store.written] == [[b"0"]]
    hopeless = recorder(PaperStore(failures=1000))
    hopeless.add([b"0"], ENDED)
    with pytest.raises(Overloaded, match="can't be stored"):
        await hopeless.end()


async def test_a_lease_is_renewed_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "RENEW_EVERY", 0.02)
    store = PaperStore()
    written = recorder(store)
    await written.begin()
    await asyncio.sleep(0.2)
    leases = [progress.lease_until for progress in store.written]
    assert len(leases) >= 3
    assert leases == sorted(leases)  # type: ignore[type-var]
    written.add((), ENDED)
    await written.end()


@pytest.mark.parametrize("failures", [0, 1000])
async def test_what_is_recorded_is_at_work_until_its_end(failures: int) -> None:
    """Nobody of this gateway takes it for abandoned; after an end that could not be written, somebody has to."""
    scribe = Scribe(PaperStore(failures=failures))
    written = Recorder(scribe, Kept("acct", "gw", timedelta(days=1), INPUT, None), body())
    await written.begin()
    assert scribe.at_work == {"resp_1"}
    written.add((), ENDED)
    with contextlib.suppress(Overloaded):
        await written.end()
    assert scribe.at_work == set()


@pytest.mark.parametrize("standing", [Standing(is_ours=False), Standing(is_ours=True, is_cancelled=True)])
async def test_others_can_stop_it(standing: Standing) -> None:
    store = PaperStore(standing=standing)
    written, stopped = recorder(store), []
    written.stop = stopped.append
    await written.begin()
    written.add([b"0"], body())
    await asyncio.sleep(0.1)
    assert stopped[0] is standing.is_cancelled
    written.add([b"1"], ENDED)
    if standing.is_ours:
        await written.end()
    else:
        with pytest.raises(Overloaded) as caught:
            await written.end()
        assert caught.value.code == "response_lost"


async def test_what_comes_during_a_transaction_shares_the_next() -> None:
    store = PaperStore(hold=asyncio.Event())
    scribe = Scribe(store)
    writes = [asyncio.create_task(scribe.write(progress(str(i)))) for i in range(10)]
    await asyncio.sleep(0)
    assert store.hold is not None
    store.hold.set()
    await asyncio.gather(*writes)
    assert len(store.batches) <= 2
    assert sorted(p.response_id for p in store.written) == sorted(map(str, range(10)))


async def test_one_that_is_refused_does_not_take_the_others_with_it() -> None:
    store = PaperStore(poison="3")
    scribe = Scribe(store)
    results = await asyncio.gather(*(scribe.write(progress(str(i))) for i in range(5)), return_exceptions=True)
    assert [isinstance(result, ValueError) for result in results] == [False, False, False, True, False]


def progress(response_id: str) -> Progress:
    return Progress(response_id, "acct", "gw", "completed", None)
