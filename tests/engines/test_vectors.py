"""What a model's files say about its vectors, and the arithmetic on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines import registry
from engines.base import EngineError
from engines.fake_vectors import DIM, fake_vector
from engines.sentence_files import Pooling, SentenceFiles, of_length_one
from engines.steps import TextBatch, TextRow
from engines.types import EngineConfig, Task
from engines.vectors import activated, activation, pool, segments, task_of
from engines.vectors import vector_info as info_of


def save(folder: Path, name: str = "config.json", **values: Any) -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", Task.GENERATE),
        ("GPT2LMHeadModel", Task.GENERATE),
        ("GPT2Model", Task.EMBED),
        ("BertModel", Task.EMBED),
        ("RobertaForMaskedLM", Task.EMBED),
        ("BertForSequenceClassification", Task.SCORE),
        ("", Task.GENERATE),
    ],
)
def test_a_task_by_the_architecture(tmp_path: Path, architecture: str, task: Task) -> None:
    assert task_of(EngineConfig("torch", save(tmp_path, architectures=[architecture]))) is task
    assert task_of(EngineConfig("torch", str(tmp_path), task="embed")) is Task.EMBED
    (tmp_path / "modules.json").write_text("[]")
    assert task_of(EngineConfig("torch", str(tmp_path))) is Task.EMBED


def test_what_means_nothing_without_embeddings(tmp_path: Path) -> None:
    folder = save(tmp_path, architectures=["LlamaForCausalLM"])
    with pytest.raises(EngineError, match=r'pooling: means nothing to a model that does not embed; set task = "embed"'):
        task_of(EngineConfig("torch", folder, pooling="last"))
    with pytest.raises(EngineError, match="matryoshka: means nothing"):
        task_of(EngineConfig("torch", folder, task="score", matryoshka=True))


@pytest.mark.parametrize(
    ("config", "allowed", "sizes"),
    [
        ({}, False, []),
        ({"is_matryoshka": True}, True, []),
        ({"matryoshka_dimensions": [64, 32]}, True, [32, 64]),
    ],
)
def test_matryoshka(tmp_path: Path, config: dict[str, Any], allowed: bool, sizes: list[int]) -> None:
    info = info_of(EngineConfig("torch", save(tmp_path, **config)), 128, normalized=True)
    assert (info.truncates, info.dimensions) == (allowed, sizes)
    assert info_of(EngineConfig("torch", str(tmp_path), matryoshka=True), 128, normalized=True).truncates


def test_the_configuration_s_pooling_wins(tmp_path: Path) -> None:
    save(tmp_path, "1_Pooling/config.json", pooling_mode_cls_token=True)
    assert SentenceFiles.read(tmp_path).pooling is Pooling.CLS
    assert SentenceFiles.read(tmp_path, "last").pooling is Pooling.LAST
    assert SentenceFiles.read(tmp_path, "mean").pooling is Pooling.MEAN


def test_a_prompt_that_would_be_left_out_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "config_sentence_transformers.json", prompts={"query": "q: "}, default_prompt_name=None)
    SentenceFiles.read(tmp_path)
    save(tmp_path, "config_sentence_transformers.json", default_prompt_name="query")
    with pytest.raises(EngineError, match="default_prompt_name is not supported"):
        SentenceFiles.read(tmp_path)


def test_an_activation_that_is_not_known_is_named(tmp_path: Path) -> None:
    save(tmp_path, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(EngineError, match=r"activation function tanh: expected Sigmoid or Identity"):
        activation(tmp_path)
    save(tmp_path, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    assert activation(tmp_path) == "identity"
    assert activated(np.array([[0.0]], np.float32), "sigmoid").tolist() == [[0.5]]


def test_pooling_looks_at_no_padding() -> None:
    states = np.array([[[1.0], [2.0], [99.0]], [[3.0], [4.0], [8.0]]], np.float32)
    lengths = np.array([2, 3])
    assert pool(states, lengths, Pooling.MEAN).tolist() == [[1.5], [5.0]]
    assert pool(states, lengths, Pooling.CLS).tolist() == [[1.0], [3.0]]
    assert pool(states, lengths, Pooling.LAST).tolist() == [[2.0], [8.0]]
    assert segments([1, 3], lengths).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert of_length_one(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0.0, 0.0],
    ]


def test_the_deterministic_engine() -> None:
    rows = [TextRow([1, 2], 2), TextRow([3], 1)]
    engine = registry.create(EngineConfig("fake", task="embed"))
    data = engine.submit(TextBatch(rows)).result(10)  # type: ignore[union-attr, arg-type]
    assert data == [fake_vector(row.token_ids).tobytes() for row in rows]
    assert len(data[0]) == 4 * DIM
    engine.close()  # type: ignore[union-attr]
    engine = registry.create(EngineConfig("fake", task="score", options={"fail_at_step": 2}))
    assert [len(one) for one in engine.submit(TextBatch(rows)).result(10)] == [4, 4]  # type: ignore[union-attr, arg-type]
    with pytest.raises(RuntimeError, match=r"options.fail_at_step"):
        engine.submit(TextBatch(rows)).result(10)  # type: ignore[union-attr, arg-type]
    engine.close()  # type: ignore[union-attr]


def dense(folder: Path, weight: Any, name: str = "Tanh", **bias: Any) -> None:
    save(folder, "config.json", activation_function=f"torch.nn.modules.{name}")
    save_file({"linear.weight": weight, **bias}, folder / "model.safetensors")


def modules(folder: Path, *kinds: str) -> None:
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))


def test_layers_behind_the_pooling(tmp_path: Path) -> None:
    modules(tmp_path, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    first, second = np.array([[1.0, 2], [3, 4], [0, 1]], np.float32), np.array([[1.0, 0, 1]], np.float32)
    dense(tmp_path / "2_Dense", first, **{"linear.bias": np.array([1.0, 0, -1], np.float32)})
    dense(tmp_path / "3_Dense", second, "linear.Identity")
    files = SentenceFiles.read(tmp_path)
    given = np.array([[0.1, -0.2], [0.5, 0.5]], np.float32)
    wanted = np.tanh(given @ first.T + [1, 0, -1]) @ second.T
    np.testing.assert_allclose(files.finish(given), wanted / np.abs(wanted), atol=1e-6)
    modules(tmp_path, "Transformer", "Pooling", "Dense")
    np.testing.assert_allclose(
        SentenceFiles.read(tmp_path).finish(given), np.tanh(given @ first.T + [1, 0, -1]), atol=1e-6
    )


def test_layers_that_are_not_known(tmp_path: Path) -> None:
    modules(tmp_path, "Transformer", "Pooling", "Dense")
    with pytest.raises(EngineError, match=r"2_Dense: no model.safetensors"):
        SentenceFiles.read(tmp_path)
    dense(tmp_path / "2_Dense", np.ones((1, 2), np.float32), "activation.ReLU")
    with pytest.raises(EngineError, match="activation function ReLU: expected Tanh or Identity"):
        SentenceFiles.read(tmp_path)
    modules(tmp_path, "Transformer", "Normalize", "Pooling")
    with pytest.raises(EngineError, match="modules in the order Transformer, Normalize, Pooling"):
        SentenceFiles.read(tmp_path)
