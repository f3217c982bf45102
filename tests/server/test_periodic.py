"""What is done again and again goes on after a turn that failed."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from server.periodic import periodically


@pytest.mark.parametrize("fault", [OSError("away"), OperationalError("", {}, OSError()), ValueError("a fault of ours")])
async def test_it_goes_on_after_a_turn_that_failed(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    enough, num_turns = asyncio.Event(), 0

    async def work() -> None:
        nonlocal num_turns
        num_turns += 1
        if num_turns == 1:
            raise fault
        enough.set()

    task = asyncio.create_task(periodically(work, 0.001, "the sweep"))
    await asyncio.wait_for(enough.wait(), 30)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "the sweep failed" in caplog.text
