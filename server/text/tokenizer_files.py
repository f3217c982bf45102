"""The files around a tokenizer, as transformers writes them: tokenizer.json and what overrides it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


class TokenizerError(ValueError):
    """A missing or broken file. One line: the file, and what was expected."""


@dataclass(slots=True, frozen=True)
class TokenizerFiles:
    """What a model's folder says about its tokens."""

    backend: Tokenizer
    decoder: dict[str, Any] | None  # as in tokenizer.json
    special_ids: frozenset[int]
    special_tokens: Mapping[str, str]  # by name: bos_token, eos_token, ...
    bos_token_id: int | None
    eos_token_ids: frozenset[int]  # any of them ends an answer
    add_bos_token: bool | None  # None: as tokenizer.json does


def load_files(folder: Path) -> TokenizerFiles:
    """Reads a folder. A named special token that the vocabulary lacks is left out: the model never saw it."""
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: no such folder")
    config = read_json(folder / "tokenizer_config.json")
    names = _named_tokens(read_json(folder / "special_tokens_map.json") | config)
    backend = _load_backend(folder, config)
    _add_declared(backend, folder, config)
    _mark_special(backend, [*names.values(), *_extra_specials(config)])
    known = {name: token for name, token in names.items() if backend.token_to_id(token) is not None}
    return TokenizerFiles(
        backend=backend,
        decoder=json.loads(backend.decoder.__getstate__()) if backend.decoder else None,
        special_ids=frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special),
        special_tokens=known,
        bos_token_id=_token_id(backend, known.get("bos_token")),
        eos_token_ids=_eos_token_ids(folder, _token_id(backend, known.get("eos_token"))),
        add_bos_token=config.get("add_bos_token"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where the file is absent."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: not readable as JSON ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: a JSON object was expected")
    return value


def _load_backend(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    try:
        if path.is_file():
            backend = Tokenizer.from_file(str(path))
        elif vocab.is_file() and merges.is_file():
            path = vocab
            backend = _gpt2(vocab, merges, config)
        else:
            raise TokenizerError(f"{folder}: neither tokenizer.json nor vocab.json with merges.txt is there")
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path}: not a tokenizer ({_one_line(error)})") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _gpt2(vocab: Path, merges: Path, config: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE with GPT-2's way of cutting words. Other families share the files but cut otherwise."""
    if config.get("tokenizer_class") not in _GPT2_CLASSES:
        raise TokenizerError(f"{vocab}: a {config['tokenizer_class']} needs its tokenizer.json")
    backend = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    prefix_space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _add_declared(backend: Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Tokens that only tokenizer_config.json has."""
    declared = config.get("added_tokens_decoder") or {}
    present = backend.get_added_tokens_decoder()
    for token_id, fields in sorted(declared.items(), key=lambda item: int(item[0])):
        if int(token_id) in present:
            continue
        flags = {k: bool(fields.get(k)) for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        add = backend.add_special_tokens if flags["special"] else backend.add_tokens
        add([AddedToken(fields["content"], **flags)])
        if (got := backend.token_to_id(fields["content"])) != int(token_id):
            path = folder / "tokenizer_config.json"
            raise TokenizerError(f"{path}: added token {token_id} does not follow the vocabulary (it would be {got})")


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    found = {name: _content(config.get(name)) for name in NAMES}
    return {name: token for name, token in found.items() if token}


def _content(value: Any) -> str | None:
    """A token as a string, or as an object with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _extra_specials(config: dict[str, Any]) -> Iterator[str]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        for token in value.values() if isinstance(value, dict) else value:
            if content := _content(token):
                yield content


def _mark_special(backend: Tokenizer, tokens: list[str]) -> None:
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token not in added and backend.token_to_id(token) is not None:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])


def _token_id(backend: Tokenizer, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)


def _eos_token_ids(folder: Path, eos_token_id: int | None) -> frozenset[int]:
    """The tokenizer's own and generation_config.json's, which is config.json's where it is silent."""
    value = read_json(folder / "generation_config.json").get("eos_token_id")
    if value is None:
        value = read_json(folder / "config.json").get("eos_token_id")
    listed = value if isinstance(value, list) else [value]
    return frozenset(i for i in [*listed, eos_token_id] if isinstance(i, int))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
