"""Batches whose gateways die: what has run is not run again, none is lost, none is there twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import openai

from tests.batch_files import begin, chat_line, counts, output, wait, wait_for_lines
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.quota.redis_server import RedisServer

NUM_LINES = 300
MODEL = '[[models]]\nname = "echo"\nengine = "fake"\noptions = { delay_ms = 20 }\n'


def lines() -> list[dict[str, object]]:
    return [chat_line(f"line-{number}", f"prompt {number}", max_tokens=6) for number in range(NUM_LINES)]


def check_whole(sdk: openai.OpenAI, batch: openai.types.Batch) -> list[str]:
    """Every line once; the ids of the requests that answered them."""
    assert (batch.status, counts(batch)) == ("completed", (NUM_LINES, NUM_LINES, 0))
    found = output(sdk, batch.output_file_id)
    assert [line["custom_id"] for line in found] == [f"line-{number}" for number in range(NUM_LINES)]
    assert batch.usage is not None
    assert batch.usage.output_tokens == 6 * NUM_LINES
    return [line["response"]["request_id"] for line in found]


def recorded(folder: Path) -> dict[int, bytes]:
    """What the store has of the lines that have run."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "penstock.db", timeout=10)) as database:
        return dict(database.execute("SELECT line, output FROM batch_results").fetchall())


def test_a_batch_survives_the_death_of_its_gateway(tmp_path: Path) -> None:
    server = PenstockProcess(tmp_path, MODEL + UNLIMITED).start()
    batch = begin(server.sdk(), lines())
    wait_for_lines(server.sdk(), batch, 40)
    server.kill()
    before = recorded(tmp_path)
    assert 40 <= len(before) < NUM_LINES
    with server:
        sdk = server.sdk()
        check_whole(sdk, wait(sdk, batch))
        kept = sdk.files.content(str(sdk.batches.retrieve(batch.id).output_file_id)).read().splitlines(keepends=True)
        assert all(kept[line - 1] == output for line, output in before.items()), "a line that had run ran again"
    assert recorded(tmp_path) == {}


def test_a_restart_is_no_end_and_takes_no_time_to_take_over(tmp_path: Path) -> None:
    server = PenstockProcess(tmp_path, MODEL + UNLIMITED).start()
    batch = begin(server.sdk(), lines())
    wait_for_lines(server.sdk(), batch, 20)
    assert server.stop() == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "penstock.db")) as database:
        assert database.execute("SELECT owner, status FROM batches").fetchall() == [(None, "in_progress")]
    with server:
        check_whole(server.sdk(), wait(server.sdk(), batch))


def test_what_is_not_done_when_the_window_ends_has_expired(tmp_path: Path) -> None:
    with PenstockProcess(tmp_path, MODEL + UNLIMITED) as server:
        sdk = server.sdk()
        batch = begin(sdk, lines())
        wait_for_lines(sdk, batch, 20)
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "penstock.db", timeout=10)) as database:
            database.execute("UPDATE batches SET expires_at = '2020-01-01 00:00:00.000000'")
            database.commit()
        batch = wait(sdk, batch)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        done, rest = output(sdk, batch.output_file_id), output(sdk, batch.error_file_id)
        assert 20 <= len(done) < NUM_LINES
        assert {line["error"]["code"] for line in rest} == {"batch_expired"}
        assert sorted(line["custom_id"] for line in done + rest) == sorted(f"line-{n}" for n in range(NUM_LINES))


def test_other_gateways_take_over_within_seconds(tmp_path: Path, redis_server: RedisServer) -> None:
    """Both gateways die, one after the other: whichever had a batch, another one goes on with it."""
    config = f'[server]\nredis_url = "{redis_server.url}"\ngateways = 2\n{MODEL}{UNLIMITED}'
    with PenstockProcess(tmp_path, config) as server:
        sdk = server.sdk(max_retries=5)
        batches = [begin(sdk, lines()) for _ in range(2)]
        for victim in server.gateway_pids():
            wait_for_lines(sdk, batches[0], 10)
            os.kill(victim, signal.SIGKILL)
        for batch in batches:
            check_whole(sdk, wait(sdk, batch))
