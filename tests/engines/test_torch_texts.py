"""A generating model embeds as the same folder does that is served for embeddings, and generation does not notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import registry
from engines.base import EngineError
from engines.steps import StepPlan, StepResult, TextBatch, TextRow
from engines.torch.embedder import TorchVectorEngine
from engines.torch.engine import TorchEngine
from engines.types import EngineConfig, Task
from tests.engines.conftest import CONFIGS

Folders = Callable[[str], Path]
ROWS = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 4, 100, 7], [(7 * i) % 150 + 2 for i in range(90)], [1, 2, 3]]


def batch(rows: list[list[int]]) -> TextBatch:
    return TextBatch([TextRow(row, len(row)) for row in rows])


def as_array(data: list[bytes]) -> Any:
    return np.stack([np.frombuffer(vector, "<f4") for vector in data])


def embed(engine: TorchEngine, rows: list[list[int]]) -> Any:
    return as_array(engine.embed(batch(rows)).result(60))


def reference(folder: Path, rows: list[list[int]], **config: Any) -> Any:
    """By the engine that does nothing else."""
    engine = TorchVectorEngine(
        EngineConfig("torch", str(folder), "float32", options={"threads": 1}, **config), Task.EMBED
    )
    try:
        return as_array(engine.submit(batch(rows)).result(60))
    finally:
        engine.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_an_engine_for_embeddings(model_folder: Folders, make_engine: Any, name: str) -> None:
    folder = model_folder(name)
    for pooling in ("auto", "last"):
        engine = make_engine(folder, pooling=pooling)
        assert engine.info.vectors is not None
        expected = reference(folder, ROWS, pooling=pooling)
        np.testing.assert_allclose(embed(engine, ROWS), expected, atol=2e-5)
        for row, vector in zip(ROWS, expected, strict=True):
            np.testing.assert_allclose(embed(engine, [row])[0], vector, atol=2e-5)


class Interrupted:
    """An engine whose every step has a batch of texts before it and behind it."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.info = engine, engine.info
        self.embedded: list[Future[list[bytes]]] = []

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        self.embedded.append(self.engine.embed(batch(ROWS[:3])))
        step = self.engine.submit(plan)
        self.embedded.append(self.engine.embed(batch(ROWS[3:])))
        return step


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_between_the_steps_of_answers(model_folder: Folders, make_engine: Any, planner: Any, name: str) -> None:
    engine = make_engine(model_folder(name))
    prompts = [[(i * j) % 150 + 2 for j in range(5 + 13 * i)] for i in range(1, 5)]
    answers = []
    interrupted = Interrupted(engine)
    for each in (engine, interrupted):
        crowd = planner(each, seed=5, preempt=0.05)
        for prompt in prompts:
            crowd.add(prompt, 12)
        answers.append(crowd.run())
        engine.submit(StepPlan(finished=crowd.finished)).result(60)
    assert answers[0] == answers[1]
    expected = reference(model_folder(name), ROWS)
    halves = [as_array(future.result(60)) for future in interrupted.embedded]
    assert len(halves) > 30
    for i, half in enumerate(halves):
        np.testing.assert_allclose(half, expected[3:] if i % 2 else expected[:3], atol=2e-5)


@pytest.fixture
def folder(model_folder: Folders, tmp_path: Path) -> Path:
    """A copy, for more files."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def test_the_files_say_how_unless_the_configuration_does(folder: Path, make_engine: Any) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    by_files = make_engine(folder)
    assert "lasttoken pooling" in by_files.info.description
    np.testing.assert_allclose(embed(by_files, ROWS), reference(folder, ROWS, pooling="last"), atol=2e-5)
    by_configuration = make_engine(folder, pooling="mean", matryoshka=True)
    np.testing.assert_allclose(embed(by_configuration, ROWS), reference(folder, ROWS, pooling="mean"), atol=2e-5)
    assert by_configuration.info.vectors.truncates
    assert not by_files.info.vectors.truncates


def test_a_folder_that_asks_for_what_we_can_not_do_generates_all_the_same(folder: Path, make_engine: Any) -> None:
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    engine = make_engine(folder)
    assert engine.info.vectors is None
    assert "no embeddings" in engine.info.description
    with pytest.raises(EngineError, match="no embeddings of a generating model"):
        engine.embed(batch(ROWS)).result(60)
    with pytest.raises(EngineError, match="default_prompt_name is not supported"):
        make_engine(folder, pooling="mean")


def test_pooling_means_nothing_to_other_engines_that_generate(model_folder: Folders) -> None:
    config = EngineConfig("onnx", str(model_folder("llama")), pooling="mean")
    with pytest.raises(EngineError, match="pooling: means nothing to a model that does not embed"):
        registry.create(config)
