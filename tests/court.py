"""Servers all of whose answers go before `tests.judge`, whoever asked: a test fails whose answers were wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.judge import complaints
from tests.penstock_process import PenstockProcess
from tests.tap import Answered


class Court:
    """Judges what a server's tap has written since it was last asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def check(self) -> None:
        found = [complaint for line in self._new_lines() for complaint in complaints(Answered(**json.loads(line)))]
        assert not found, "\n".join(dict.fromkeys(found))

    def _new_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole)  # json.dumps writes ASCII
        return whole.splitlines()


_sitting: list[Court] = []


@contextlib.contextmanager
def judged(server: PenstockProcess) -> Iterator[PenstockProcess]:
    """A server with a tap, for as long as it runs; what it said to nobody's test is judged at its end."""
    assert server.tap is not None
    court = Court(server.tap)
    with server:
        _sitting.append(court)
        yield server
        _sitting.remove(court)
    court.check()


@pytest.fixture(autouse=True)
def every_answer_is_right() -> Iterator[None]:
    """For a conftest to import."""
    yield
    for court in _sitting:
        court.check()
