"""The random model: a folder that transformers loads, whose greedy output is plain words and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loadtest.machine import Sizes
from loadtest.peers.model import make, to_bfloat16
from loadtest.records import BenchError
from tests.loadtest.peers.tiny import SHAPE, WINNERS, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "model", write_tokenizer(tmp_path / "tokenizer"), SHAPE)
    return tmp_path / "model"


def test_transformers_loads_it_and_hears_plain_words(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[0, 5, 7, 10, 3]])
    logits = model(ids).logits
    assert torch.isfinite(logits).all()
    found = model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 5:].tolist()
    assert set(found) <= WINNERS
    assert len(set(found)) > 1


def test_its_weights_are_bfloat16_and_the_seed_s(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (64, 96)
    for name, seed, same in (("again", 0, True), ("other", 1, False)):
        make(tmp_path / name, tmp_path / "tokenizer", SHAPE, seed)
        other = load_file(tmp_path / name / "model.safetensors")
        assert torch.equal(weights["model.embed_tokens.weight"], other["model.embed_tokens.weight"]) is same


def test_its_sizes(folder: Path) -> None:
    sizes = Sizes.of(folder)
    layer = 64 * (128 + 64 + 64 + 128) + 3 * 64 * 96 + 2 * 64 + 2 * 32
    assert (sizes.parameters, sizes.head) == (256 * 64 + 2 * layer + 64, 256 * 64)
    assert sizes.kv_numbers == 2 * 2 * 2 * 32


def test_bits_are_rounded_as_torch_rounds() -> None:
    values = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    values[:2] = 1 + 2**-8, 1 + 3 * 2**-8  # ties
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (to_bfloat16(values) == expected).all()


def test_without_a_tokenizer_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no tokenizer\.json and no tokenizer_config\.json"):
        make(tmp_path / "model", tmp_path, SHAPE)
    assert not (tmp_path / "model").exists()
