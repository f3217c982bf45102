"""int8 on the torch engine: its numbers, what is quantized and what is refused, and the folders that keep it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from engines.base import EngineError
from engines.onnx.folder import find_graph
from engines.steps import TextBatch, TextRow
from engines.torch import loader, save_int8
from engines.torch.cpu.linear import PackedWeight, can_pack
from engines.torch.export_onnx import export
from engines.torch.int8 import Int8Embedding, Int8Linear, integer_product, quantize_rows, quantize_weight
from engines.torch.quantize import Int8Config, finish
from tests.engines.conftest import BUNDLED, CONFIGS

Folders = Callable[[str], Path]
CPU = torch.device("cpu")
FUSED = {"mixtral": "MixtralExperts", "gpt_oss": "GptOssExperts", "deepseek_v3": "DeepseekV3Experts"}
DENSE = [name for name in CONFIGS if name not in FUSED]


def random_rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def random_int8(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8)


def test_rows_have_scales_of_their_own_and_round_to_even() -> None:
    rows = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.25, 1e-9, 0.0]]))
    assert rows.values.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 32, 0, 0]]
    assert rows.scales.tolist() == [1.0, 0.0, np.float32(1) / np.float32(127)]


def test_a_weight_is_quantized_in_parts_as_in_one() -> None:
    weight = random_rows(700, 500).bfloat16()
    rows, whole = quantize_weight(weight), quantize_rows(weight)
    assert torch.equal(rows.values, whole.values)
    assert torch.equal(rows.scales, whole.scales)


@pytest.mark.parametrize("inputs", [1, 1040, 1041, 5000])
def test_products_are_exact(inputs: int) -> None:
    rows, weight = random_int8(3, inputs), random_int8(300, inputs)
    worst = torch.full((1, inputs), 127, dtype=torch.int8)
    for left, right in ((rows, weight), (worst, worst), (worst, -worst)):
        assert torch.equal(integer_product(left, right).long(), left.long() @ right.long().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_scales_by_the_row_then_by_the_output_then_adds_the_bias(dtype: torch.dtype) -> None:
    weight, x = quantize_weight(random_rows(40, 64)), random_rows(2, 3, 64).to(dtype)
    layer = Int8Linear(40, 64, bias=True, dtype=torch.int8)
    layer.weight.data, layer.weight_scale = weight.values, weight.scales
    layer.bias = torch.nn.Parameter(random_rows(40))
    rows = quantize_rows(x.view(6, 64))
    sums = (rows.values.long() @ weight.values.long().T).numpy().astype(np.float32)
    expected = sums * rows.scales.numpy()[:, None] * weight.scales.numpy() + layer.bias.detach().numpy()
    assert torch.equal(layer(x), torch.from_numpy(expected).to(dtype).view(2, 3, 40))
    assert torch.equal(layer(x)[1, 2], layer(x[1, 2]))  # whatever its neighbours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_have_the_same_bits(dtype: torch.dtype) -> None:
    if not can_pack(200, int8=True):
        pytest.skip("no compiler, or a CPU without kernels for linear layers")
    weight, x = quantize_weight(random_rows(80, 200)), random_rows(50, 200).to(dtype)
    layer = Int8Linear(80, 200, bias=True, dtype=torch.int8)
    layer.weight.data, layer.weight_scale = weight.values, weight.scales
    layer.bias = torch.nn.Parameter(random_rows(80))
    assert torch.equal(PackedWeight(layer.weight.data, layer.weight_scale, layer.bias).linear(x), layer(x))


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer = Int8Linear(16, 32, bias=False, dtype=torch.int8)
    layer.weight.data, layer.weight_scale = random_int8(16, 32), torch.ones(16)
    x = random_rows(3, 32)
    clean = layer(x)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    out = layer(x)
    assert not out[:2].isfinite().any()
    assert torch.equal(out[2], clean[2])


def test_embeddings_are_scaled_and_multiplied() -> None:
    table = Int8Embedding(5, 8, dtype=torch.int8, multiplier=3.0)
    table.weight.data, table.weight_scale = random_int8(5, 8), torch.arange(5.0)
    assert torch.equal(table(torch.tensor([[4, 1]]))[0, 0], table.weight[4].float() * 4 * 3)


def quantized(folder: Path, dtype: str = "float32") -> Any:
    return loader.load(str(folder), dtype, CPU, Int8Config()).model


def saved(source: Path, folder: Path) -> Path:
    save_int8.save(source, folder / "int8")
    return folder / "int8"


def assert_same_weights(a: Any, b: Any) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("name", DENSE)
def test_logits_are_near_and_a_saved_folder_has_the_same_weights(
    model_folder: Folders, tmp_path: Path, name: str
) -> None:
    folder, ids = model_folder(name), torch.arange(2, 22)[None]
    assert_same_weights(quantized(folder), loader.load(str(saved(folder, tmp_path)), "float32", CPU).model)
    exact = transformers.AutoModelForCausalLM.from_pretrained(folder)
    int8 = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    finish(int8, torch.float32)
    assert sum(isinstance(m, Int8Linear) for m in int8.modules()) >= 8
    with torch.inference_mode():
        logits = [model(input_ids=ids).logits.flatten() for model in (exact, int8)]
    assert torch.corrcoef(torch.stack(logits))[0, 1] > 0.98


@pytest.mark.parametrize("name", FUSED)
def test_fused_experts_are_refused_by_name(model_folder: Folders, name: str) -> None:
    with pytest.raises(EngineError, match=f"int8: the fused weights of {FUSED[name]} .* are not supported"):
        quantized(model_folder(name))


def test_a_tied_head_shares_the_table_and_its_scales(model_folder: Folders, tmp_path: Path) -> None:
    folder = model_folder("llama_tied_mha")
    for model in (quantized(folder), loader.load(str(saved(folder, tmp_path)), "bfloat16", CPU).model):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight_scale is model.model.embed_tokens.weight_scale
        assert model.lm_head.weight_scale.dtype == torch.float32


def test_two_that_config_json_ties_and_that_differ_are_not_tied(model_folder: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    model, again = quantized(folder), loader.load(str(saved(folder, tmp_path)), "float32", CPU).model
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert_same_weights(model, again)


def test_a_head_that_lies_in_the_checkpoint_for_both(model_folder: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("llama_tied_mha"), tmp_path / "model"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_weights(quantized(folder), quantized(model_folder("llama_tied_mha")))


def test_weights_are_quantized_from_the_checkpoints_precision(model_folder: Folders, tmp_path: Path) -> None:
    """Whatever the rest is computed in: so a saved folder serves for every dtype."""
    folder = saved(model_folder("qwen2"), tmp_path)
    for dtype in ("bfloat16", "float32", "auto"):
        model = quantized(model_folder("qwen2"), dtype)
        assert_same_weights(model, loader.load(str(folder), dtype, CPU).model)
        assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        assert model.model.layers[0].self_attn.q_proj.bias.dtype == model.dtype


def test_half_precision_is_computed_in_float32_on_a_cpu(model_folder: Folders, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float16)
    model.save_pretrained(tmp_path / "half")
    assert quantized(tmp_path / "half", "auto").dtype == torch.float32


def test_the_bundled_model_is_about_a_quarter_of_float32(make_engine: Any, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    sizes = save_int8.save(BUNDLED, tmp_path / "int8", lambda *count: counts.append(count))
    assert counts == [(done, 36) for done in range(1, 37)]
    assert sizes.float32 == 4 * 4_737_792
    assert sizes.target <= 0.27 * sizes.float32
    assert sizes.target == (tmp_path / "int8" / "model.safetensors").stat().st_size
    names = {file.name for file in (tmp_path / "int8").iterdir()}
    assert names == {file.name for file in BUNDLED.iterdir()}
    assert list(tmp_path.iterdir()) == [tmp_path / "int8"]


def test_shards(model_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_int8, "_SHARD", 20_000)
    folder = saved(model_folder("llama"), tmp_path)
    assert len(list(folder.glob("model-0*.safetensors"))) > 1
    assert_same_weights(quantized(model_folder("llama")), loader.load(str(folder), "float32", CPU).model)


def test_what_embeds_goes_along(model_folder: Folders, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    (source / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    assert (saved(source, tmp_path) / "1_Pooling" / "config.json").read_text() == "{}"


def test_engines_of_either_answer_and_embed_alike(
    model_folder: Folders, make_engine: Any, planner: Any, tmp_path: Path
) -> None:
    prompts, texts = [[5, 6, 7, 8], list(range(40, 90)), [3]], [[9, 10, 11], [12]]
    batch = TextBatch([TextRow(text, len(text)) for text in texts])
    seen = []
    for folder, quantize in ((model_folder("qwen3"), "int8"), (saved(model_folder("qwen3"), tmp_path), "none")):
        engine = make_engine(folder, quantize=quantize)
        plans = planner(engine)
        for prompt in prompts:
            plans.add(prompt, 12)
        assert "int8 and float32" in engine.info.description
        seen.append((plans.run(), engine.embed(batch).result(60)))
    assert seen[0] == seen[1]
    exact = make_engine(model_folder("qwen3")).embed(batch).result(60)
    for vector, expected in zip(seen[0][1], exact, strict=True):
        assert np.frombuffer(vector, "<f4") @ np.frombuffer(expected, "<f4") > 0.98  # both are of length 1


def test_what_stays_is_named(model_folder: Folders, make_engine: Any) -> None:
    description = make_engine(model_folder("gpt2"), quantize="int8").info.description
    assert "int8 and float32 (transformer.wpe.weight)" in description


@pytest.fixture
def int8_folder(model_folder: Folders, tmp_path: Path) -> Path:
    return saved(model_folder("llama"), tmp_path)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_vocabulary_of_another_size(int8_folder: Path, model_folder: Folders, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    for folder, int8 in ((plain, Int8Config()), (int8_folder, None)):
        edit_config(folder, vocab_size=200)
        with pytest.raises(EngineError, match=r"config\.json asks for"):
            loader.load(str(folder), "float32", CPU, int8)


def test_missing_scales(int8_folder: Path) -> None:
    weights = safetensors.torch.load_file(int8_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight_scale"]
    safetensors.torch.save_file(weights, int8_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"missing, among them model.layers.1.mlp.up_proj.weight_scale"):
        loader.load(str(int8_folder), "float32", CPU)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"quant_method": "penstock-int8", "format": 2}, "expected format 1 of penstock-int8, got 2"),
        ({"quant_method": "fp8"}, "quantization_config is not supported"),
    ],
)
def test_other_quantizations(int8_folder: Path, method: dict[str, Any], reason: str) -> None:
    edit_config(int8_folder, quantization_config=method)
    with pytest.raises(EngineError, match=reason):
        loader.load(str(int8_folder), "auto", CPU)


def test_what_can_t_take_a_saved_folder_says_so(int8_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="its weights are quantized: export the model that they were made of"):
        export(int8_folder, tmp_path / "onnx")
    with pytest.raises(EngineError, match="its weights are quantized for the torch engine"):
        find_graph(int8_folder, int8=True)
    with pytest.raises(EngineError, match="its weights are int8 already"):
        save_int8.save(int8_folder, tmp_path / "again")
    with pytest.raises(EngineError, match="exists already"):
        save_int8.save(BUNDLED, int8_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8"]
