"""What is declared is started, all of it or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batching.protocol import WorkerConfig
from batching.stats import WorkerStats
from batching.supervisor import WorkerSupervisor
from engines.base import EngineError
from engines.types import Continuation, EngineInfo, Task, VectorInfo
from server import model_files
from server.balancing import Replica
from server.model_files import ModelFilesError, find
from server.registry import Registry, _find_folder, _fingerprint
from server.settings import BUNDLED_FOLDER, load
from server.text.tokenizer import ByteTokenizer, load_tokenizer
from tests.byte_tokenizer import write_byte_tokenizer
from tests.fakes import eventually

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
    return Registry(settings, folder, WorkerSupervisor)


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def test_int8_is_another_model_to_the_cache_and_to_seeds() -> None:
    plain, int8 = (load(None, {"quantize": kind}, {}).models[0] for kind in ("none", "int8"))
    info = EngineInfo(max_model_len=8, max_num_seqs=1, vocab_size=8)
    assert len({_fingerprint(model, BUNDLED_FOLDER, info) for model in (plain, int8)}) == 2


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
        assert list(house.engines) == ["echo@1#0", "echo@1#1", "echo@2"]
        assert house.engines["echo@2"].max_model_len == 100
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
    await eventually(lambda: children() <= before)  # one that was killed while it was being born is reaped later


async def test_the_deterministic_engine_has_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`penstock serve --engine fake`: the bundled model's name, and its own byte tokenizer and context."""
    monkeypatch.setattr(model_files, "find", lambda place: pytest.fail(f"looked for {place}"))
    settings = load(None, {"data_dir": str(tmp_path), "engine": "fake"}, {})
    house = Registry(settings, tmp_path, WorkerSupervisor)
    await house.start()
    try:
        (deployment,) = house.deployments.values()
        assert (deployment.id, deployment.limits.context) == ("tiny-chat@1", 1_000_000)
        assert isinstance(deployment.tokenizer, ByteTokenizer)
    finally:
        await house.stop()


async def test_the_deterministic_engine_honours_the_system_prompt(tmp_path: Path) -> None:
    house = registry(tmp_path, '[[models]]\nname = "m"\nengine = "fake"\nsystem_prompt = "Be brief. "\n')
    await house.start()
    try:
        template = house.deployments["m@1"].encoder.template
        assert template.render([{"role": "user", "content": "Hi"}]) == "Be brief. Hi"
    finally:
        await house.stop()


async def test_a_tokenizer_apart_leaves_the_model_its_stop_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def started(self: WorkerSupervisor) -> None:
        self.info = EngineInfo(64, 1, 512, 16, 4, 64)

    monkeypatch.setattr(WorkerSupervisor, "start", started)
    own = load_tokenizer(BUNDLED_FOLDER).eos_token_ids
    for files, expected in (
        ({"config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [8, 9]}}, {8, 9}),
        ({"generation_config.json": {}}, {7}),
    ):
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        house = registry(tmp_path, f'[[models]]\nname = "m"\npath = "{tmp_path}"\ntokenizer = "{BUNDLED_FOLDER}"\n')
        await house.start()
        assert house.deployments["m@1"].limits.eos_token_ids == own | expected


def test_what_a_worker_counted_stays_known_while_it_is_away() -> None:
    worker = SimpleNamespace(stats=WorkerStats(restarts=1, steps=7))
    link = SimpleNamespace(client=None)
    replica = Replica(link)  # type: ignore[arg-type]
    assert replica.stats == WorkerStats()
    link.client = worker
    assert replica.stats.steps == 7
    worker.stats = WorkerStats(restarts=1, steps=9)
    link.client = None
    assert replica.stats == WorkerStats(restarts=1, steps=9)
    link.client = SimpleNamespace(stats=WorkerStats(restarts=2))
    assert replica.stats == WorkerStats(restarts=2)


@pytest.mark.parametrize(
    ("engine", "fetched"),
    [
        ("torch", {"config.json", "tokenizer.json", "model.safetensors"}),
        ("onnx", {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data", "model_quantized.onnx"}),
    ],
)
def test_of_a_repository_only_what_the_engine_loads(
    engine: str, fetched: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "modeling.py"]
    offered += ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "model_quantized.onnx"]
    taken: set[str] = set()

    def download(name: str, allow_patterns: list[str]) -> str:
        taken.update(file for file in offered if any(fnmatch(file, pattern) for pattern in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(model_files, "snapshot_download", download)
    settings = load(None, {"data_dir": str(tmp_path), "engine": engine, "models": ["org/name"]}, {})
    assert _find_folder(settings.models[0]) == tmp_path
    assert taken == fetched


def test_model_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~") == tmp_path
    (tmp_path / "file").write_text("")
    for wrong in (str(tmp_path / "file"), "no/such/folder", "/nowhere", "-x", "a b"):
        with pytest.raises(ModelFilesError, match="expected a folder"):
            find(wrong)


@dataclass
class PaperLink:
    """A worker of a Triton's that says what it found there."""

    config: WorkerConfig
    name: str
    info: EngineInfo | None = None
    client: Any = None
    stopped: bool = False
    other: dict[str, Any] = field(default_factory=dict)  # what it finds at h:2

    async def start(self) -> None:
        self.info = EngineInfo(max_model_len=100, max_num_seqs=4, vocab_size=0)
        if self.config.engine.url == "h:2":
            self.info = replace(self.info, **self.other)

    async def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"takes_text": True},
        {"task": Task.EMBED},
        {"vectors": VectorInfo(8)},
        {"takes_grammars": True},
        {"continuation": Continuation.GREEDY},
    ],
)
async def test_each_url_is_a_replica_of_the_same_model(other: dict[str, Any], tmp_path: Path) -> None:
    urls, links = ["h:1", "h:2"], list[PaperLink]()

    def make_link(config: WorkerConfig, name: str) -> PaperLink:
        links.append(PaperLink(config, name, other=other))
        return links[-1]

    tokenizer = write_byte_tokenizer(tmp_path)
    text = f'[[models]]\nname = "m"\nengine = "triton"\nurl = {urls}\ntokenizer = "{tokenizer}"\n'
    (tmp_path / "penstock.toml").write_text(text)
    settings = load(tmp_path / "penstock.toml", {"data_dir": str(tmp_path)}, {})
    house = Registry(settings, tmp_path, make_link)
    if not other:
        await house.start()
        assert len(house.deployments["m@1"].replicas) == 2
    else:
        with pytest.raises(EngineError, match="m@1: url: at h:2, m takes or gives something else than at h:1"):
            await house.start()
        assert all(link.stopped for link in links)
    assert [(link.name, link.config.engine.url) for link in links] == [("m@1#0", urls[0]), ("m@1#1", urls[1])]
