"""A response that runs by itself, told to whoever follows it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, Self

import pytest

from engines.types import FinishReason, Usage
from server.choice import Piece
from server.responses import recorder as recorder_module
from server.responses.answer import ResponseBuilder
from server.responses.background import Run
from server.responses.following import RunSource
from server.responses.service import Prepared
from server.wire.response_body import QUEUED
from tests.server.responses.test_answer import TERMINAL, body
from tests.server.responses.test_recorder import PaperStore, recorder
from tests.server.responses.test_telling import stored


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_EVERY", 0.01)


class PaperGeneration:
    """Says hello when it may."""

    def __init__(self) -> None:
        self.usage = Usage(1, 1, 0)
        self.is_done = False
        self.may_end = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def next(self, patience: float = 0) -> list[Piece]:
        await self.may_end.wait()
        self.is_done = True
        return [Piece(0, "hello", FinishReason.STOP)]


@pytest.mark.parametrize(
    ("failures", "refused", "status"), [(0, "", "completed"), (0, "completed", "failed"), (1000, "", "failed")]
)
async def test_followers_are_told_of_no_end_that_could_not_be_stored(failures: int, refused: str, status: str) -> None:
    store, generation = PaperStore(), PaperGeneration()
    asked: Any = SimpleNamespace()
    run = Run(Prepared(generation, asked, ResponseBuilder(body(QUEUED)), recorder(store)))  # type: ignore[arg-type]
    await run.start()
    source, told = RunSource(run, -1), []
    store.failures, store.refused = failures, refused
    generation.may_end.set()
    while not source.has_ended:
        told += await source.next(1.0)
    events = [json.loads(event) for event in told]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["response"]["status"] == status
    if not failures:
        assert stored(store) == told
