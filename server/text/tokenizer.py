"""Text to token ids and back, by the files that a model's folder holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend

from engines.steps import TextRow
from engines.vocabulary import Vocabulary
from server.text.detokenizer import IncrementalDetokenizer
from server.text.literals import trie_pattern
from server.text.token_bytes import TokenBytesTable, UnsupportedDecoderError
from server.text.tokenizer_files import TokenizerError, TokenizerFiles, load_files

__all__ = ["ByteTokenizer", "HFTokenizer", "Tokenizer", "TokenizerError", "load_tokenizer"]

# We encode one text a call: the library's thread pool would only warn at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

INERT = "\ufdd0"
"""Put inside a special token's string to make it plain text. A noncharacter: no text is meant to hold it."""


class Tokenizer(Protocol):
    """What the gateway needs of a tokenizer. All methods may be called from any thread."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> frozenset[int]: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def special_tokens(self) -> Mapping[str, str]:
        """By their names in chat templates: bos_token, eos_token, ..."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text. A special token's string in it becomes that token."""

    def encode_pair(self, first: str, second: str) -> TextRow:
        """Two texts as one, as a cross-encoder reads them, with the tokenizer's special tokens."""

    def encode_inert(self, text: str) -> list[int]:
        """As `encode(text, False)`, but what `make_inert` marked is plain text. The marks leave no trace."""

    def make_inert(self, text: str) -> str:
        """The text with every special token's string marked for `encode_inert`; the same object if it has none."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that stand alone, special tokens left out."""

    def decode_all(self, ids: Sequence[int]) -> str:
        """The same with special tokens, as their strings."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it; empty for an id that doesn't exist."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text; empty for a special token and for an id that doesn't exist."""

    def detokenizer(self, visible: Mapping[int, bytes] | None = None) -> IncrementalDetokenizer:
        """For one answer, whose text stands alone. Special tokens in `visible` are text too."""

    def special_ids(self) -> Mapping[str, int]:
        """Every special token's string and id."""

    def vocabulary(self) -> Vocabulary | None:
        """What grammars have to know of it; None where there can be none. Takes a while for a large one."""


class HFTokenizer:
    """A Hugging Face tokenizer, by the `tokenizers` library alone: no transformers, no torch.

    `decode` is the library's own, with one difference: where a run of byte tokens ("<0xE2>") is not wholly UTF-8,
    the library gives U+FFFD for every byte of it, the good characters included, which no stream can do once they
    are sent. Here, as in SentencePiece, the good characters stay.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._backend = files.backend
        self._add_bos = files.add_bos_token
        self.special_tokens = files.special_tokens
        self.bos_token_id = files.bos_token_id
        self.eos_token_ids = files.eos_token_ids
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self._table = TokenBytesTable(self._backend, files.decoder, files.special_ids)
        self._inert = _InertEncoder(self._backend)
        self._special_ids = {self._backend.id_to_token(i) or "": i for i in sorted(files.special_ids)}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = _encode(self._backend, text, add_special_tokens)
        return self._fix_bos(ids) if add_special_tokens and self._add_bos is not None else ids

    def _fix_bos(self, ids: list[int]) -> list[int]:
        """tokenizer_config.json's add_bos_token overrides what tokenizer.json puts first."""
        has_bos = bool(ids) and ids[0] == self.bos_token_id
        if self._add_bos and not has_bos and self.bos_token_id is not None:
            return [self.bos_token_id, *ids]
        return ids[1:] if has_bos and not self._add_bos else ids

    def encode_pair(self, first: str, second: str) -> TextRow:
        pair = (_whole(first), _whole(second))
        encoding = self._backend.encode_batch([pair], add_special_tokens=True)[0]
        types = encoding.type_ids
        return TextRow(encoding.ids, types.index(1) if 1 in types else len(types))

    def encode_inert(self, text: str) -> list[int]:
        return self._inert.encode(text)

    def make_inert(self, text: str) -> str:
        return self._inert.mark(text)

    def decode(self, ids: Sequence[int]) -> str:
        detokenizer = self.detokenizer()
        return detokenizer.add(ids) + detokenizer.finish()

    def decode_all(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._backend.id_to_token(token_id) or "" for token_id in ids]

    def token_bytes(self, token_id: int) -> bytes:
        return self._table.token(token_id)

    def detokenizer(self, visible: Mapping[int, bytes] | None = None) -> IncrementalDetokenizer:
        first = self._table.first_token if self._table.position_matters else None
        if not visible:
            return IncrementalDetokenizer(self._table.token, first)
        return IncrementalDetokenizer(
            lambda token_id: visible.get(token_id) or self._table.token(token_id),
            None if first is None else lambda token_id: visible.get(token_id) or first(token_id),
        )

    def special_ids(self) -> Mapping[str, int]:
        return self._special_ids

    def vocabulary(self) -> Vocabulary:
        end = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        tokens = [self._table.token(token_id) for token_id in range(end)]
        special = [token_id for token_id, data in enumerate(tokens) if not data]
        for token_id in special:
            tokens[token_id] = (self._backend.id_to_token(token_id) or f"<|no token {token_id}|>").encode()
        return Vocabulary(tokens, special, self._backend.to_str())


class _InertEncoder:
    """Encodes a text in which some special tokens' strings are plain text because a mark is inside them.

    The library cuts special tokens out of the raw text first and normalizes what lies between after that. So a
    second tokenizer, over the same model and vocabulary, whose normalizer drops the mark, reads a marked string as
    text and everything else exactly as the first one does.
    """

    def __init__(self, backend: Backend) -> None:
        added = sorted(backend.get_added_tokens_decoder().items())
        self._backend = Backend(backend.model)
        steps = [normalizers.Replace(INERT, "")] + ([backend.normalizer] if backend.normalizer else [])
        self._backend.normalizer = normalizers.Sequence(steps)
        if backend.pre_tokenizer is not None:
            self._backend.pre_tokenizer = backend.pre_tokenizer
        self._backend.add_tokens([_exactly(token) for _, token in added])
        self._ids = {self._backend.token_to_id(t.content): i for i, t in added}
        self._ids = {ours: theirs for ours, theirs in self._ids.items() if ours != theirs}
        # A special token of one character (a model that ends its answers with a line feed) can't hold a mark, and
        # has to stay usable as text.
        strings = [t.content for _, t in added if t.special and len(t.content) > 1]
        self._find = re.compile(f"(?=({trie_pattern(strings)}))(.)", re.DOTALL) if strings else None

    def mark(self, text: str) -> str:
        if self._find is None or self._find.search(text) is None:
            return text
        return self._find.sub(lambda match: match[2] + INERT, text)

    def encode(self, text: str) -> list[int]:
        ids = _encode(self._backend, text, False)
        return [self._ids.get(i, i) for i in ids] if self._ids else ids


def _encode(backend: Backend, text: str, add_special_tokens: bool) -> list[int]:
    """Releases the GIL, which the library's `encode` holds throughout: a long prompt would stop the event loop."""
    ids: list[int] = backend.encode_batch_fast([_whole(text)], add_special_tokens=add_special_tokens)[0].ids
    return ids


def _whole(text: str) -> str:
    """Without lone surrogates, which are no text."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _exactly(token: AddedToken) -> AddedToken:
    """Matched in the raw text, where the mark still is."""
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized and not token.special,
        special=token.special,
    )


class ByteTokenizer:
    """One token a byte of UTF-8, ids 0 to 255: the deterministic engine's. No special tokens."""

    vocab_size = 256
    eos_token_ids: frozenset[int] = frozenset()
    bos_token_id: int | None = None
    special_tokens: Mapping[str, str] = {}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(text.encode(errors="replace"))

    def encode_pair(self, first: str, second: str) -> TextRow:
        one = self.encode(first, True)
        return TextRow(one + self.encode(second, True), len(one))

    def encode_inert(self, text: str) -> list[int]:
        return self.encode(text, False)

    def make_inert(self, text: str) -> str:
        return text

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def decode_all(self, ids: Sequence[int]) -> str:
        return self.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.token_bytes(token_id).decode("latin-1") for token_id in ids]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def detokenizer(self, visible: Mapping[int, bytes] | None = None) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(self.token_bytes)

    def special_ids(self) -> Mapping[str, int]:
        return {}

    def vocabulary(self) -> None:
        return None


def load_tokenizer(folder: str | Path) -> HFTokenizer:
    """The tokenizer of a model's folder, or TokenizerError: one line that names the file and what is wrong."""
    files = load_files(Path(folder))
    try:
        return HFTokenizer(files)
    except UnsupportedDecoderError as error:
        raise TokenizerError(f"{Path(folder) / 'tokenizer.json'}: {error}") from error
