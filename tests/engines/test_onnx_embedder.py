"""Sentence embeddings: pooled as the folder says, whoever else is in the batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.base import EngineError
from engines.onnx.embedder import OnnxEmbedder
from engines.types import EngineConfig

NORMALIZE = json.dumps(
    [{"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
)


@pytest.fixture
def golden(optimum: Path) -> Any:
    return json.loads((optimum / "golden.json").read_text())


@pytest.fixture
def folder(optimum: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(optimum / "bert", tmp_path / "bert"))


def embedder(folder: Path, **config: Any) -> OnnxEmbedder:
    return OnnxEmbedder(EngineConfig("onnx", str(folder), **config))


def configure(folder: Path, **pooling: object) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def test_a_plain_folder_means_the_mean(folder: Path, golden: Any) -> None:
    model = embedder(folder)
    together = model.embed(golden["prompts"])
    np.testing.assert_allclose(together, golden["bert"], atol=1e-4)
    alone = np.concatenate([model.embed([prompt]) for prompt in golden["prompts"]])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_many_rows_in_parts_keep_their_order(folder: Path, golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.onnx.embedder._BATCH_TOKENS", 50)
    np.testing.assert_allclose(embedder(folder).embed(golden["prompts"]), golden["bert"], atol=1e-4)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}]
)
def test_the_first_token(folder: Path, golden: Any, pooling: dict[str, object]) -> None:
    configure(folder, include_prompt=True, **pooling)
    np.testing.assert_allclose(embedder(folder).embed(golden["prompts"]), golden["bert_cls"], atol=1e-4)


def test_normalized(folder: Path, golden: Any) -> None:
    configure(folder, pooling_mode_mean_tokens=True)
    (folder / "modules.json").write_text(NORMALIZE)
    vectors = embedder(folder).embed(golden["prompts"])
    expected = np.array(golden["bert"])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_a_sentence_embedding_is_taken_as_it_is(tmp_path: Path) -> None:
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
    assert embedder(tmp_path).embed([[5, 5, 5], [7]]).tolist() == [[3, 3], [1, 1]]


def test_int8_points_the_same_way(folder: Path, golden: Any) -> None:
    vectors = embedder(folder, quantize="int8").embed(golden["prompts"])
    expected = np.array(golden["bert"])
    cosine = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.95
    assert np.abs(vectors - expected).max() > 1e-4


def test_nothing_to_embed(folder: Path) -> None:
    assert embedder(folder).embed([]).shape == (0, 16)


@pytest.mark.parametrize("row", [[], [1] * 65])
def test_a_row_that_can_not_be_embedded(folder: Path, row: list[int]) -> None:
    with pytest.raises(ValueError, match=f"a text of {len(row)} tokens: expected 1 to 64"):
        embedder(folder).embed([[1], row])


def test_a_pooling_that_is_not_known_is_named(folder: Path) -> None:
    configure(folder, pooling_mode="weightedmean")
    with pytest.raises(EngineError, match=r"1_Pooling/config.json: pooling weightedmean: expected one of mean, cls"):
        embedder(folder)


def test_a_decoder_is_refused(optimum: Path) -> None:
    with pytest.raises(EngineError, match=r"model.onnx: the model is a decoder with a KV cache"):
        embedder(optimum / "llama")
