"""The conversion, read back by gguf itself in llama.cpp's environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loadtest.peers.model import make
from loadtest.peers.places import INSIDE, Places
from loadtest.records import BenchError
from tests.loadtest.peers.tiny import SHAPE, WORDS, write_tokenizer

ROOT = Path(__file__).resolve().parents[3]
READ = """
import json, sys
from gguf import GGUFReader
from gguf.quants import dequantize
reader = GGUFReader(sys.argv[1])
tensors = {t.name: [t.tensor_type.name, dequantize(t.data, t.tensor_type).tolist()] for t in reader.tensors}
fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith(("qwen3", "tokenizer"))}
print(json.dumps([tensors, fields]))
"""
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.1.self_attn.q_norm.weight": "blk.1.attn_q_norm.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    "model.norm.weight": "output_norm.weight",
}


@pytest.fixture(scope="module")
def python() -> str:
    try:
        return str(Places(ROOT / ".peers").python("llama"))
    except BenchError as error:
        pytest.skip(f"needs llama.cpp's environment: {error}")


@pytest.mark.parametrize(("kind", "tolerance"), [("BF16", 0.0), ("Q8_0", 0.01)])
def test_it_holds_the_same(python: str, tmp_path: Path, kind: str, tolerance: float) -> None:
    folder, target = tmp_path / "model", tmp_path / "model.gguf"
    make(folder, write_tokenizer(tmp_path / "tokenizer"), SHAPE)
    subprocess.run([python, INSIDE / "to_gguf.py", folder, target, kind], check=True)
    tensors, fields = _read(python, target)
    weights = load_file(folder / "model.safetensors")
    assert len(tensors) == len(weights)
    for theirs, name in NAMES.items():
        found_kind, values = tensors[name]
        weight = weights[theirs].float()
        assert found_kind == ("F32" if weight.ndim == 1 else kind)
        assert torch.allclose(torch.tensor(values), weight, atol=tolerance * weight.abs().max().item(), rtol=0)
    assert fields["qwen3.attention.head_count_kv"] == 2
    assert fields["qwen3.attention.key_length"] == 32
    assert fields["tokenizer.ggml.tokens"][: len(WORDS) + 1] == [*WORDS, "<|end|>"]
    assert fields["tokenizer.ggml.merges"] == ["a b", "Ġ a"]
    assert fields["tokenizer.ggml.add_bos_token"] is False


def _read(python: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = subprocess.run([python, "-c", READ, path], check=True, capture_output=True, text=True)
    tensors, fields = json.loads(found.stdout)
    return tensors, fields
