"""Static embeddings equal those of the table, read with numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engines import registry
from engines.base import EngineError
from engines.static import StaticEngine
from engines.steps import TextBatch, TextRow
from engines.types import EngineConfig, Task

ROWS = [[3, 4, 3], [5], [0, 1, 2, 3, 4, 5]]


def save(folder: Path, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    numbers = np.random.default_rng(4)
    tensors = {
        "embeddings": numbers.normal(size=(4, 8)).astype(np.float32),
        "mapping": np.array([0, 1, 2, 3, 3, 2], dtype=np.int32),
        "weights": numbers.uniform(0.1, 1, size=6),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True} | config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or {"model": {"type": "Unigram", "vocab": []}}))
    return folder


def vectors(folder: Path, rows: list[list[int]] = ROWS, **config: Any) -> Any:
    engine = StaticEngine(EngineConfig("torch", str(folder), **config))
    data = engine.submit(TextBatch([TextRow(row, len(row)) for row in rows])).result(60)
    engine.close()
    return np.stack([np.frombuffer(one, "<f4") for one in data])


def plain(folder: Path, rows: list[list[int]]) -> Any:
    tensors = load_file(folder / "model.safetensors")
    means = []
    for row in rows:
        weighted = [tensors["embeddings"][tensors["mapping"][i]] * tensors["weights"][i] for i in row]
        means.append(np.mean(weighted, axis=0))
    return np.stack(means)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_weighted_mean(tmp_path: Path) -> None:
    np.testing.assert_allclose(vectors(save(tmp_path)), unit(plain(tmp_path, ROWS)), atol=1e-6)
    np.testing.assert_allclose(vectors(save(tmp_path, normalize=False)), plain(tmp_path, ROWS), atol=1e-6)


def test_an_unknown_token_that_has_a_name_is_left_out(tmp_path: Path) -> None:
    save(tmp_path, {"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 1, "a": 2}}})
    np.testing.assert_allclose(vectors(tmp_path, [[1, 3, 1, 4]]), unit(plain(tmp_path, [[3, 4]])), atol=1e-6)
    assert not vectors(tmp_path, [[1, 1]]).any()


def test_a_shared_model(shared_data: Path) -> None:
    folder = shared_data / "models" / "m2v-64d"
    rows = [[6594, 1091, 2], [2], list(range(100, 400))]
    np.testing.assert_allclose(vectors(folder, rows), unit(plain(folder, rows)), atol=1e-6)
    engine = registry.create(EngineConfig("torch", str(folder)))
    assert (engine.info.task, engine.info.vocab_size) == (Task.EMBED, 29524)
    assert engine.info.vectors is not None
    assert (engine.info.vectors.dim, engine.info.vectors.truncates) == (64, True)  # by PCA
    engine.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pooling": "cls"}, 'pooling: a static model takes the mean, got "cls"'),
        ({"task": "generate"}, 'task: a static model has embeddings alone, expected "embed"'),
        ({"quantize": "int8"}, 'quantize: "int8" is not supported for a static model'),
        ({"options": {"threads": 1}}, "options.threads: unknown; a static model has none"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        StaticEngine(EngineConfig("torch", str(save(tmp_path)), **config))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"mapping": tensors["mapping"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match="`mapping` and `weights` don't fit"):
        StaticEngine(EngineConfig("torch", str(tmp_path)))
    save_file({"vectors": tensors["embeddings"]}, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match="no table `embeddings`, it has vectors"):
        StaticEngine(EngineConfig("torch", str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(EngineError, match=r"model.safetensors: not readable"):
        StaticEngine(EngineConfig("torch", str(tmp_path)))
