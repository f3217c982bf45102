"""Vectors from transformers models equal those of a plain forward pass and a plain pooling, whoever is beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engines import registry
from engines.base import EngineError
from engines.steps import TextBatch, TextRow
from engines.torch.embedder import TorchVectorEngine
from engines.types import EngineConfig, Task
from tests.engines.conftest import TINY

Make = Callable[..., TorchVectorEngine]
ROWS = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 4, 100, 7], [9] * 40, [1, 2, 3]]
ENCODER = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**ENCODER),
    "roberta": lambda: transformers.RobertaConfig(**ENCODER | {"pad_token_id": 1}),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=160, dim=48, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=64
    ),
    "modernbert": lambda: transformers.ModernBertConfig(**ENCODER | {"local_attention": 16}),
    "llama": lambda: transformers.LlamaConfig(**TINY),
    "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=16),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=160, n_embd=48, n_layer=2, n_head=4, n_positions=256),
}
HEADS = {"llama": transformers.AutoModelForCausalLM, "qwen3": transformers.AutoModelForCausalLM}


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            torch.manual_seed(2)
            folders[name] = tmp_path_factory.mktemp(name)
            auto = HEADS.get(name, transformers.AutoModel)
            auto.from_config(CONFIGS[name]()).float().save_pretrained(folders[name])
        return folders[name]

    return get


@pytest.fixture
def make() -> Iterator[Make]:
    engines: list[TorchVectorEngine] = []

    def build(folder: Path, task: Task = Task.EMBED, **config: Any) -> TorchVectorEngine:
        config = {"dtype": "float32", "options": {"threads": 1}} | config
        engines.append(TorchVectorEngine(EngineConfig("torch", str(folder), **config), task))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def vectors(engine: TorchVectorEngine, rows: list[list[int]]) -> Any:
    batch = TextBatch([TextRow(row, len(row)) for row in rows])
    return np.stack([np.frombuffer(data, "<f4") for data in engine.submit(batch).result(60)])


@torch.inference_mode()
def reference(folder: Path, pooling: str) -> Any:
    """Each row alone, without padding, by transformers itself."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    states = [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS]
    pooled = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0], "last": lambda s: s[-1]}[pooling]
    return torch.nn.functional.normalize(torch.stack([pooled(s) for s in states])).numpy()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_equal_to_a_plain_forward_pass(
    encoder_folder: Callable[[str], Path], make: Make, name: str, pooling: str
) -> None:
    folder = encoder_folder(name)
    engine = make(folder, pooling=pooling)
    together = vectors(engine, ROWS)
    np.testing.assert_allclose(together, reference(folder, pooling), atol=2e-5)
    alone = np.concatenate([vectors(engine, [row]) for row in ROWS])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert engine.info.vectors is not None
    assert (engine.info.vectors.dim, engine.info.vocab_size, engine.info.task) == (48, 160, Task.EMBED)


def test_the_context_is_what_the_positions_hold(encoder_folder: Callable[[str], Path], make: Make) -> None:
    assert make(encoder_folder("bert")).info.max_model_len == 64
    roberta = make(encoder_folder("roberta"))
    assert roberta.info.max_model_len == 62  # positions begin behind the padding's
    assert vectors(roberta, [[5] * 62]).shape == (1, 48)
    with pytest.raises(EngineError, match="max_model_len: 63 exceeds the model's 62 positions"):
        make(encoder_folder("roberta"), max_model_len=63)


def test_what_a_sentence_transformers_folder_says(
    encoder_folder: Callable[[str], Path], make: Make, tmp_path: Path
) -> None:
    source = encoder_folder("bert")
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")])
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    engine = make(tmp_path)
    raw = vectors(engine, ROWS)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 0.1, "it has no Normalize"
    np.testing.assert_allclose(raw / lengths, reference(source, "cls"), atol=2e-5)
    assert engine.info.max_model_len == 48


@pytest.mark.parametrize(("name", "task"), [("bert", Task.EMBED), ("gpt2", Task.EMBED), ("llama", Task.GENERATE)])
def test_the_files_say_what_a_model_is_for(encoder_folder: Callable[[str], Path], name: str, task: Task) -> None:
    engine = registry.create(EngineConfig("torch", str(encoder_folder(name)), options={"threads": 1}))
    assert engine.info.task is task
    engine.close()  # type: ignore[union-attr]


def test_a_causal_model_embeds_where_the_configuration_says_so(encoder_folder: Callable[[str], Path]) -> None:
    engine = registry.create(EngineConfig("torch", str(encoder_folder("llama")), task="embed", pooling="last"))
    assert engine.info.task is Task.EMBED
    engine.close()  # type: ignore[union-attr]


# --- cross-encoders


def save_classifier(folder: Path, name: str, num_labels: int = 1, **config: Any) -> Path:
    torch.manual_seed(3)
    settings = CONFIGS[name]()
    settings.num_labels = num_labels
    for key, value in config.items():
        setattr(settings, key, value)
    transformers.AutoModelForSequenceClassification.from_config(settings).float().save_pretrained(folder)
    return folder


PAIRS = [TextRow([5, 6, 7, 8, 9], 3), TextRow([5, 6, 7, 20, 21, 22, 23, 24, 25], 3), TextRow([9, 3], 1)]


@torch.inference_mode()
def plain_scores(folder: Path, *, types: bool) -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits = []
    for row in PAIRS:
        ids = torch.tensor([row.token_ids])
        segment = (torch.arange(len(row.token_ids)) >= row.num_first).long()[None]
        extra = {"token_type_ids": segment} if types else {}
        logits.append(float(model(input_ids=ids, **extra).logits[0, 0]))
    return np.array(logits)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_a_cross_encoder_scores_pairs(tmp_path: Path, make: Make, name: str) -> None:
    folder = save_classifier(tmp_path, name)
    engine = make(folder, Task.SCORE)
    got = [float(np.frombuffer(data, "<f4")[0]) for data in engine.submit(TextBatch(PAIRS)).result(60)]
    expected = 1 / (1 + np.exp(-plain_scores(folder, types=name != "llama")))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert len({round(score, 4) for score in got}) == 3


def test_a_cross_encoder_without_an_activation(tmp_path: Path, make: Make) -> None:
    name = "torch.nn.modules.linear.Identity"
    folder = save_classifier(tmp_path, "bert", sbert_ce_default_activation_function=name)
    engine = make(folder, Task.SCORE)
    got = [float(np.frombuffer(data, "<f4")[0]) for data in engine.submit(TextBatch(PAIRS)).result(60)]
    np.testing.assert_allclose(got, plain_scores(folder, types=True), atol=1e-4)


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path, make: Make) -> None:
    with pytest.raises(EngineError, match="a classifier of 3 labels: a cross-encoder has one"):
        make(save_classifier(tmp_path, "bert", num_labels=3), Task.SCORE)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantize": "int8"}, 'quantize: "int8" is not supported for embeddings'),
        ({"dtype": "float8"}, 'dtype: expected one of auto, float32, bfloat16, got "float8"'),
        ({"options": {"num_blocks": 3}}, "options.num_blocks: unknown"),
    ],
)
def test_a_bad_configuration_is_one_line(
    encoder_folder: Callable[[str], Path], make: Make, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        make(encoder_folder("bert"), **config)
