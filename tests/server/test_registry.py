"""What is declared is started, all of it or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from engines.base import EngineError
from server.model_files import ModelFilesError, find
from server.registry import Registry
from server.settings import load

TWO_VERSIONS = """
[[models]]
name = "echo"
engine = "fake"
version = "1"
replicas = 2
[[models]]
name = "echo"
engine = "fake"
version = "2"
max_model_len = 100
max_tokens_default = 7
"""
BROKEN = '[[models]]\nname = "broken"\nengine = "fake"\noptions = { wrong = 1 }\n'


def registry(folder: Path, config: str) -> Registry:
    (folder / "penstock.toml").write_text(config)
    settings = load(folder / "penstock.toml", {"data_dir": str(folder)}, {})
    return Registry(settings, folder, lambda model, version: None)


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


async def test_every_version_is_served(tmp_path: Path) -> None:
    before, house = children(), registry(tmp_path, TWO_VERSIONS)
    await house.start()
    try:
        assert list(house.deployments) == ["echo@1", "echo@2"]
        first, second = house.deployments.values()
        assert (len(first.replicas), first.limits.context) == (2, 1_000_000)
        assert (second.limits.context, second.limits.max_tokens_default) == (100, 7)
        assert first.fingerprint != second.fingerprint
        assert all(deployment.is_ready for deployment in house.deployments.values())
        assert [row[:2] for row in house.replica_stats()] == [("echo", "1"), ("echo", "1"), ("echo", "2")]
        assert len(children() - before) == 3
    finally:
        await house.stop()
    assert children() <= before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".sock")]


async def test_one_that_does_not_start_stops_all(tmp_path: Path) -> None:
    before, house = children(), registry(tmp_path, TWO_VERSIONS + BROKEN)
    with pytest.raises(EngineError, match=r"options\.wrong"):
        await house.start()
    assert not house.deployments
    assert children() <= before


@pytest.mark.parametrize("delay", [0.0, 0.1])
async def test_a_start_that_is_given_up_leaves_no_process(tmp_path: Path, delay: float) -> None:
    before, house = children(), registry(tmp_path, TWO_VERSIONS)
    starting = asyncio.create_task(house.start())
    await asyncio.sleep(delay)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # unless a fast machine has started everything by then
        await starting
    await house.stop()
    assert children() <= before


def test_model_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~") == tmp_path
    (tmp_path / "file").write_text("")
    for wrong in (str(tmp_path / "file"), "no/such/folder", "/nowhere"):
        with pytest.raises(ModelFilesError, match="expected a folder"):
            find(wrong)
