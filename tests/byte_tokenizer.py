"""A tokenizer's folder in which a token's id is its byte, so that the deterministic engine's answers can be told."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONTENTS = "{% for message in messages %}{{ message.content }}{% endfor %}"
END = "<|end|>"  # id 256


def write_byte_tokenizer(folder: Path, context: int = 4096) -> Path:
    """With a config.json that names the length of the context."""
    alphabet = {_letter(byte): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer_config = {"eos_token": END, "chat_template": CONTENTS}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}), encoding="utf-8")
    return folder


def _letter(byte: int) -> str:
    """GPT-2's: the printable bytes stand for themselves, the others, in their order, for what follows 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))
