"""Tokenizers to test with: two small ones written here, and the shared real ones where that folder exists."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from server.text.tokenizer import HFTokenizer, load_tokenizer

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no shared data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def shared_tokenizer(data: Path) -> Callable[[str], HFTokenizer]:
    """By folder, such as "tokenizers/qwen3". Loaded once."""
    return cache(lambda name: load_tokenizer(data / name))


def is_special(tokenizer: HFTokenizer, token_id: int) -> bool:
    return token_id in tokenizer._table._special_ids


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with ChatML's special tokens, a <think> that isn't special, and a template."""
    folder = tmp_path_factory.mktemp("byte-level")
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["the user says hello to the assistant, one more time"] * 3, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "chat_template": CHATML},
    )
    write_json(folder / "generation_config.json", {"eos_token_id": [backend.token_to_id("<|endoftext|>")]})
    return folder


@pytest.fixture(scope="session")
def byte_level(byte_level_folder: Path) -> HFTokenizer:
    return load_tokenizer(byte_level_folder)


@pytest.fixture(scope="session")
def fallback_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SentencePiece's manner, as Llama 2 has it: a space before the text, byte tokens for rare characters."""
    folder = tmp_path_factory.mktemp("fallback")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*"abcdefghijklmnopqrstuvwxyz.,!é", "▁a", "▁t", "th", "▁th"]
    merges = [("▁", "a"), ("▁", "t"), ("t", "h"), ("▁", "th")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    write_json(folder / "config.json", {"eos_token_id": 2})
    return folder


@pytest.fixture(scope="session")
def fallback(fallback_folder: Path) -> HFTokenizer:
    return load_tokenizer(fallback_folder)
