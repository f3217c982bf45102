"""Models whose layers the C++ kernels run in one call: which they are, and that they compute what the layers say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)

from engines.torch import attention, loader, probe
from engines.torch.backend import KVSize, LayerShape
from engines.torch.cpu import library
from engines.torch.cpu.attention import KernelBackend, KernelStep
from engines.torch.cpu.decoder import DecoderStack
from engines.torch.cpu.linear import PackedEmbedding, PackedLinear, can_pack
from engines.torch.cpu.model import use_kernels
from engines.torch.quantize import Int8Config

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
FUSED = [
    Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    LlamaConfig(**SIZES, tie_word_embeddings=False),
    Qwen2Config(**SIZES),  # with biases
    MistralConfig(**SIZES, sliding_window=8),
]
NOT_FUSED = [GraniteConfig(**SIZES, residual_multiplier=0.3), Olmo2Config(**SIZES)]
CPU = torch.device("cpu")


@pytest.fixture(params=["amx", "avx512"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not any(each.name == request.param and each.needs <= library.cpu_flags() for each in library.LEVELS):
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setenv("PENSTOCK_CPU_LEVEL", request.param)
    library.library.cache_clear()
    if not can_pack(128, int8=False):
        pytest.skip("no compiler here")
    yield
    library.library.cache_clear()


def made(config: Any) -> tuple[Any, list[LayerShape]]:
    torch.manual_seed(0)
    attention.register()
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=attention.ATTENTION_NAME
    ).eval()
    return model, probe.layer_shapes(model)


class Sequences:
    """Some sequences in KV memory of their own, each with blocks of its own."""

    def __init__(self, shapes: list[LayerShape], count: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.backend = KernelBackend(shapes, KVSize(count * 4, 16, dtype, CPU))
        self.tables = np.arange(count * 4).reshape(count, 4)
        self.lengths = np.zeros(count, dtype=np.int64)

    @torch.inference_mode()
    def feed(self, model: Any, tokens: dict[int, list[int]]) -> torch.Tensor:
        """Logits [tokens, vocabulary] of what these sequences are given next."""
        numbers = list(tokens)
        starts, counts = self.lengths[numbers], np.array([len(tokens[n]) for n in numbers])
        step = KernelStep(self.backend, starts, counts, self.tables[numbers])
        positions = np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)])
        ids = torch.tensor([[token for number in numbers for token in tokens[number]]])
        self.lengths[numbers] += counts
        output = model(
            input_ids=ids, position_ids=torch.from_numpy(positions)[None], use_cache=False, attention_step=step
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def prompt(seed: int, count: int) -> list[int]:
    return torch.randint(0, 500, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("config", FUSED, ids=lambda config: config.model_type)
def test_layers_like_llamas_are_fused_and_compute_the_same(level: None, config: Any) -> None:
    model, shapes = made(config)
    expected = Sequences(shapes, 2).feed(model, {0: prompt(0, 21), 1: prompt(1, 5)})
    assert use_kernels(model, shapes) == "fused layers"
    assert isinstance(model.base_model.layers[0], DecoderStack)
    got = Sequences(shapes, 2).feed(model, {0: prompt(0, 21), 1: prompt(1, 5)})
    assert (got - expected).float().square().mean().sqrt() < 0.02 * expected.float().square().mean().sqrt()


@pytest.mark.parametrize("config", NOT_FUSED, ids=lambda config: config.model_type)
def test_other_layers_are_left_to_their_own_code(level: None, config: Any) -> None:
    model, shapes = made(config)
    assert use_kernels(model, shapes).endswith("packed layers")
    assert isinstance(model.base_model.layers[0].self_attn.q_proj, PackedLinear)


@pytest.mark.parametrize("config", FUSED, ids=lambda config: config.model_type)
def test_a_sequence_has_the_same_bits_alone_in_a_crowd_and_in_chunks(level: None, config: Any) -> None:
    model, shapes = made(config)
    use_kernels(model, shapes)
    alone = Sequences(shapes, 1).feed(model, {0: prompt(3, 30)})
    crowd = Sequences(shapes, 4)
    first = crowd.feed(model, {1: prompt(1, 7), 0: prompt(3, 11), 2: prompt(2, 33)})[7:18]
    second = crowd.feed(model, {0: prompt(3, 30)[11:29], 3: prompt(4, 2)})[:18]
    third = crowd.feed(model, {1: [5], 2: [6], 0: prompt(3, 30)[29:], 3: [7]})[2:3]
    assert torch.equal(torch.cat([first, second, third]), alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [FUSED[0], FUSED[2]], ids=lambda config: config.model_type)
def test_int8_layers_are_fused_over_their_own_weights(level: None, config: Any, dtype: str, tmp_path: Path) -> None:
    made(config)[0].save_pretrained(tmp_path)
    loaded = loader.load(str(tmp_path), dtype, CPU, Int8Config())
    expected = Sequences(loaded.layers, 1, loaded.model.dtype).feed(loaded.model, {0: prompt(0, 21)})
    assert use_kernels(loaded.model, loaded.layers) == "fused layers"
    got = Sequences(loaded.layers, 1, loaded.model.dtype).feed(loaded.model, {0: prompt(0, 21)})
    tolerance = 0.02 if dtype == "bfloat16" else 1e-3
    assert (got - expected).float().square().mean().sqrt() < tolerance * expected.float().square().mean().sqrt()


def test_a_tied_head_shares_its_weights_with_the_embedding(level: None) -> None:
    model, shapes = made(FUSED[0])
    use_kernels(model, shapes)
    assert isinstance(model.get_input_embeddings(), PackedEmbedding)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_model_in_float32_is_left_alone(level: None) -> None:
    model, shapes = made(FUSED[0])
    assert use_kernels(model.float(), shapes) == "torch's layers"
