"""A tokenizer of a few tokens, and the shape of a model that knows them."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase

from loadtest.peers.model import Shape

SHAPE = Shape(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=256,
    max_position_embeddings=128,
    bos_token_id=250,
    eos_token_id=251,
)
PAIRS = [first + second for first in "abcde" for second in ascii_lowercase]
WORDS = ["Ġ", "1", "é", "a1", *ascii_lowercase, *(f"Ġ{letter}" for letter in ascii_lowercase), *PAIRS]
WINNERS = set(range(4, len(WORDS)))


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    added = [{"id": len(WORDS), "content": "<|end|>", "special": True}]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(WORDS)}, "merges": [["a", "b"], ["Ġ", "a"]]}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder
