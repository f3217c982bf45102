"""Sentence embeddings: pooled as the folder says, whoever else is in the batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines import registry
from engines.base import EngineError
from engines.onnx.embedder import OnnxVectorEngine
from engines.steps import TextBatch, TextRow
from engines.types import EngineConfig, Task

NORMALIZE = json.dumps(
    [{"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
)


@pytest.fixture
def golden(optimum: Path) -> Any:
    return json.loads((optimum / "golden.json").read_text())


@pytest.fixture
def folder(optimum: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(optimum / "bert", tmp_path / "bert"))


Make = Callable[..., Any]


class Embedder:
    """An engine, asked from a test's thread."""

    def __init__(self, folder: Path, task: Task = Task.EMBED, **config: Any) -> None:
        self.engine = OnnxVectorEngine(EngineConfig("onnx", str(folder), **config), task)

    def embed(self, rows: list[list[int]]) -> Any:
        batch = TextBatch([TextRow(row, len(row)) for row in rows])
        return np.stack([np.frombuffer(data, "<f4") for data in self.engine.execute(batch)])


@pytest.fixture
def embedder() -> Iterator[Callable[..., Embedder]]:
    made: list[Embedder] = []

    def make(folder: Path, **config: Any) -> Embedder:
        made.append(Embedder(folder, **config))
        return made[-1]

    yield make
    for each in made:
        each.engine.close()


def configure(folder: Path, **pooling: object) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def of_length_one(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_plain_folder_means_the_mean_of_length_one(folder: Path, golden: Any, embedder: Make) -> None:
    model = embedder(folder)
    together = model.embed(golden["prompts"])
    np.testing.assert_allclose(together, of_length_one(np.array(golden["bert"])), atol=1e-4)
    alone = np.concatenate([model.embed([prompt]) for prompt in golden["prompts"]])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (model.engine.info.max_model_len, model.engine.info.vocab_size) == (64, 32)
    assert model.engine.info.vectors is not None
    assert model.engine.info.vectors.dim == 16


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}]
)
def test_the_first_token(folder: Path, golden: Any, pooling: dict[str, object], embedder: Make) -> None:
    configure(folder, include_prompt=True, **pooling)
    (folder / "modules.json").write_text("[]")
    np.testing.assert_allclose(embedder(folder).embed(golden["prompts"]), golden["bert_cls"], atol=1e-4)


def test_normalized(folder: Path, golden: Any, embedder: Make) -> None:
    configure(folder, pooling_mode_mean_tokens=True)
    (folder / "modules.json").write_text(NORMALIZE)
    vectors = embedder(folder).embed(golden["prompts"])
    expected = np.array(golden["bert"])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_a_sentence_embedding_is_taken_as_it_is(tmp_path: Path, embedder: Make) -> None:
    """A graph whose vector is the number of tokens, twice."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"])
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=1),
        helper.make_node("Concat", ["count", "count"], ["sentence_embedding"], axis=1),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", [ids, mask], [output], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "modules.json").write_text("[]")
    assert embedder(tmp_path, max_model_len=8).embed([[5, 5, 5], [7]]).tolist() == [[3, 3], [1, 1]]


def test_int8_points_the_same_way(folder: Path, golden: Any, embedder: Make) -> None:
    vectors = embedder(folder, quantize="int8").embed(golden["prompts"])
    expected = of_length_one(np.array(golden["bert"]))
    cosine = (vectors * expected).sum(1)
    assert cosine.min() > 0.95
    assert np.abs(vectors - expected).max() > 1e-4


def test_a_module_that_is_not_known_is_named(folder: Path, embedder: Make) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.LSTM"}]))
    with pytest.raises(EngineError, match=r"modules.json: module LSTM is not supported, expected Transformer"):
        embedder(folder)


def test_the_folder_says_that_it_embeds(folder: Path, optimum: Path) -> None:
    engine = registry.create(EngineConfig("onnx", str(folder)))
    assert engine.info.task is Task.EMBED
    engine.close()  # type: ignore[union-attr]
    decoder = registry.create(EngineConfig("onnx", str(optimum / "llama"), options={"num_blocks": 20}))
    assert decoder.info.task is Task.GENERATE
    decoder.close()  # type: ignore[union-attr]


def test_a_pooling_that_is_not_known_is_named(folder: Path, embedder: Make) -> None:
    configure(folder, pooling_mode="weightedmean")
    with pytest.raises(EngineError, match=r"1_Pooling/config.json: pooling weightedmean: expected one of mean, cls"):
        embedder(folder)


def test_a_decoder_is_refused(optimum: Path, embedder: Make) -> None:
    with pytest.raises(EngineError, match=r"model.onnx: the model is a decoder with a KV cache"):
        embedder(optimum / "llama")
