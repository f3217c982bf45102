"""Responses that run in the background, over two servers that share a database: any of them tells of each, stops it,
and ends it when its own has died."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engines.fake_tokens import fake_answer
from server.responses.recorder import LEASE
from tests.penstock_process import PenstockProcess, started_together
from tests.postgres_server import PostgresServer

CONFIG = """
[server]
database_url = "DATABASE"
[[models]]
name = "echo"
engine = "fake"
options = { delay_ms = 50 }
[quota.plans.default]
account = {}
[timeouts]
drain = 1
"""
PATIENCE = LEASE.total_seconds() + 20
ASKED: Any = {"model": "echo", "input": "hello", "background": True}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PenstockProcess, PenstockProcess]]:
    if request.param == "sqlite":
        database = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('shared') / 'penstock.db'}"
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        database = postgres.new_database()
    config = CONFIG.replace("DATABASE", database)
    here, there = (PenstockProcess(tmp_path_factory.mktemp(name), config) for name in ("here", "there"))
    with started_together(here, there):
        yield here, there


def ended(sdk: openai.OpenAI, response_id: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while (found := sdk.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, f"a zombie: {found.status}"
        time.sleep(0.1)
    return found


def test_another_server_tells_of_it_while_it_runs(pair: tuple[PenstockProcess, PenstockProcess]) -> None:
    here, there = (server.sdk() for server in pair)
    made = here.responses.create(**ASKED, max_output_tokens=30)
    events = list(there.responses.retrieve(made.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    last: Any = events[-1]
    assert last.response.output_text == bytes(fake_answer(list(b"hello"), 30)).decode()
    assert last.response.to_dict() == here.responses.retrieve(made.id).to_dict()
    follow_up = there.responses.create(
        **ASKED | {"background": False}, max_output_tokens=1, previous_response_id=made.id
    )
    assert follow_up.usage is not None
    assert follow_up.usage.input_tokens == 40


def test_another_server_stops_it(pair: tuple[PenstockProcess, PenstockProcess]) -> None:
    here, there = pair
    made = here.sdk().responses.create(**ASKED, max_output_tokens=10_000)
    assert there.sdk().responses.cancel(made.id).status == "cancelled"
    here.wait_for_metric("penstock_requests_running", 0)
    assert here.sdk().responses.retrieve(made.id).status == "cancelled"


def test_one_that_is_deleted_elsewhere_stops(pair: tuple[PenstockProcess, PenstockProcess]) -> None:
    here, there = pair
    made = here.sdk().responses.create(**ASKED, max_output_tokens=10_000)
    there.sdk().responses.delete(made.id)
    here.wait_for_metric("penstock_requests_running", 0)


def test_one_ends_with_its_server_s_drain(pair: tuple[PenstockProcess, PenstockProcess]) -> None:
    here, there = pair
    made = here.sdk().responses.create(**ASKED, max_output_tokens=10_000)
    assert here.stop() == 0
    found = there.sdk().responses.retrieve(made.id)
    assert found.status == "failed"
    assert found.error is not None
    assert found.error.code == "server_error"
    here.start()


def test_one_whose_server_is_killed_fails_and_so_do_its_followers(
    pair: tuple[PenstockProcess, PenstockProcess],
) -> None:
    here, there = pair
    made = here.sdk().responses.create(**ASKED, max_output_tokens=10_000)
    followed: list[Any] = []
    follower = threading.Thread(target=lambda: followed.extend(there.sdk().responses.retrieve(made.id, stream=True)))
    follower.start()
    time.sleep(1)
    here.kill()
    found = ended(there.sdk(), made.id)
    assert (found.status, found.error.code) == ("failed", "server_error")
    follower.join(PATIENCE)
    assert [event.sequence_number for event in followed] == list(range(len(followed)))
    assert [event.type == "response.failed" for event in followed] == [False] * (len(followed) - 1) + [True]
    assert len(followed) > 5
    here.start()
    assert here.sdk().responses.retrieve(made.id).to_dict() == found.to_dict()
