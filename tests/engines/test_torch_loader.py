"""What can't be served is refused in one line that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from engines.base import EngineError
from engines.torch import loader
from engines.torch.engine import TorchEngine
from engines.types import EngineConfig


def refusal(folder: Path, **config: Any) -> str:
    with pytest.raises(EngineError) as caught:
        TorchEngine(EngineConfig("torch", str(folder), **config))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the Llama checkpoint that a test may damage."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_missing_folder(tmp_path: Path) -> None:
    assert "no folder" in refusal(tmp_path / "nowhere")


def test_missing_config(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)


def test_broken_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    assert "not valid JSON" in refusal(folder)


def test_config_that_is_not_an_object(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    assert "config.json" in refusal(folder)


def test_unknown_architecture(folder: Path) -> None:
    edit_config(folder, model_type="perceptron-9000")
    assert "perceptron-9000" in refusal(folder)


def test_remote_code_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    assert "config.json" in refusal(folder)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder)


def test_corrupt_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "weights can't be loaded" in refusal(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "weights can't be loaded" in refusal(folder)


def test_missing_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_vocabulary_mismatch(folder: Path) -> None:
    edit_config(folder, vocab_size=200)
    assert "has the shape (160, 48), but config.json asks for (200, 48)" in refusal(folder)


def test_quantized_checkpoint(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantization_config" in refusal(folder)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=64), "does not support attention"),
        (transformers.BertConfig(**SMALL), "not causal"),
        (transformers.DogeConfig(**SMALL), "uses attention_mask"),
        (transformers.NemotronConfig(**SMALL), "not given the keyword arguments"),
        (transformers.DiffLlamaConfig(**SMALL), "not numbered one by one"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_unsupported_models(config: Any, reason: str, tmp_path: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert reason in refusal(tmp_path)


def test_encoder_decoder_models(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, vocab_size=64)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    assert "t5 is not a causal language model" in refusal(tmp_path)


def test_a_window_that_only_a_mask_would_express(folder: Path) -> None:
    edit_config(folder, sliding_window=16)  # Llama's attention hands no window down
    assert "sliding_window" in refusal(folder)


def test_an_unknown_layer_type(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("qwen2"), tmp_path / "model"))
    edit_config(folder, layer_types=["full_attention", "chunked_attention"])
    assert "chunked_attention" in refusal(folder)


def test_positions_beyond_the_model(model_folder: Callable[[str], Path]) -> None:
    assert "exceeds the model's 256 positions" in refusal(model_folder("opt"), max_model_len=257)


def test_longrope_is_served_up_to_its_original_context(folder: Path) -> None:
    factors = [1.0] * 6
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 1e4}
    edit_config(folder, rope_parameters=rope | {"original_max_position_embeddings": 64}, max_position_embeddings=256)
    assert loader.load(str(folder), "auto", torch.device("cpu")).max_positions == 64


def test_half_precision_is_computed_in_float32_on_a_cpu(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(folder)
    assert loader.load(str(folder), "auto", torch.device("cpu")).model.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"dtype": "float64"}, "dtype: expected one of auto, float32, bfloat16"),
        ({"quantize": "fp8"}, 'quantize: expected one of none, int8, got "fp8"'),
        ({"options": {"colour": 3}}, "options.colour: unknown"),
        ({"options": {"threads": "two"}}, "options.threads: expected a positive integer"),
        ({"options": {"num_blocks": 3}, "max_model_len": 100}, "kv_memory_bytes to at least"),
    ],
)
def test_configuration_errors(config: Any, reason: str, model_folder: Callable[[str], Path]) -> None:
    assert reason in refusal(model_folder("llama"), **config)


def test_an_open_context_length_shrinks_to_the_memory(model_folder: Callable[[str], Path], make_engine: Any) -> None:
    info = make_engine(model_folder("llama"), options={"num_blocks": 3}).info
    assert (info.max_model_len, info.num_blocks) == (48, 3)


def test_blocks_are_bounded_by_what_can_be_in_use(model_folder: Callable[[str], Path]) -> None:
    engine = TorchEngine(EngineConfig("torch", str(model_folder("llama")), max_model_len=100, max_num_seqs=3))
    assert engine.info.num_blocks == 21
    engine.close()
