import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.detokenizer import IncrementalDetokenizer
from server.text.token_bytes import UnsupportedDecoderError, decoder_steps
from server.text.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from tests.server.text.conftest import is_special

REAL = [
    "tokenizers/gpt2",
    "tokenizers/qwen3",
    "tokenizers/mistral-v3",
    "tokenizers/gpt-oss",
    "tokenizers/minimind",
    "models/stories260K",
    "models/babyllama-tok105",
    "models/tinyllm-chat",
    "models/tiny-llama",
]
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\tabc.é日🦙👩‍👩‍👧\u0301\ufffd▁")),
    max_size=30,
)


def pieces(detokenizer: IncrementalDetokenizer, ids: Sequence[int], cuts: random.Random) -> list[str]:
    """The ids in pieces of 0 to 3, and the end."""
    out, position = [], 0
    while position < len(ids):
        size = cuts.randrange(4)
        out.append(detokenizer.add(ids[position : position + size]))
        position += size
    return [*out, detokenizer.finish()]


def check_split(tokenizer: Tokenizer, ids: Sequence[int], cuts: random.Random) -> None:
    assert "".join(pieces(tokenizer.detokenizer(), ids, cuts)) == tokenizer.decode(ids)


def whole_byte_runs(tokenizer: HFTokenizer, ids: Sequence[int]) -> bool:
    """Whether every run of byte tokens is UTF-8: where it isn't, the library drops good characters too."""
    run = b""
    for token_id in [*ids, -1]:
        piece = tokenizer._backend.id_to_token(token_id) if token_id >= 0 else None
        if piece and len(piece) == 6 and piece.startswith("<0x"):
            run += bytes.fromhex(piece[3:5])
        elif token_id == -1 or not is_special(tokenizer, token_id):
            if run.decode(errors="ignore").encode() != run:
                return False
            run = b""
    return True


def check_against_library(tokenizer: HFTokenizer, ids: Sequence[int]) -> None:
    if whole_byte_runs(tokenizer, ids):
        assert tokenizer.decode(ids) == tokenizer._backend.decode(ids, skip_special_tokens=True)


@given(TEXTS, st.randoms(use_true_random=False), st.booleans())
def test_small_tokenizers_split_anywhere(
    byte_level: HFTokenizer, fallback: HFTokenizer, text: str, cuts: random.Random, special: bool
) -> None:
    for tokenizer in (byte_level, fallback, ByteTokenizer()):
        ids = tokenizer.encode(text, add_special_tokens=special)
        check_split(tokenizer, ids, cuts)
        if isinstance(tokenizer, HFTokenizer):
            check_against_library(tokenizer, ids)


@given(st.lists(st.integers(0, 400), max_size=20), st.randoms(use_true_random=False))
def test_any_ids_at_all(byte_level: HFTokenizer, fallback: HFTokenizer, ids: list[int], cuts: random.Random) -> None:
    for tokenizer in (byte_level, fallback):
        check_split(tokenizer, ids, cuts)
        check_against_library(tokenizer, ids)


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name: str, shared_tokenizer: Callable[[str], HFTokenizer]) -> None:
    tokenizer = shared_tokenizer(name)
    any_ids = st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=24)

    @settings(max_examples=60, deadline=None)
    @given(st.one_of(any_ids, TEXTS.map(lambda t: tokenizer.encode(t, True))), st.randoms(use_true_random=False))
    def check(ids: list[int], cuts: random.Random) -> None:
        check_split(tokenizer, ids, cuts)
        check_against_library(tokenizer, ids)

    check()


@given(st.lists(st.integers(0, 255), max_size=40), st.randoms(use_true_random=False))
def test_at_most_three_bytes_are_held_back(ids: list[int], cuts: random.Random) -> None:
    detokenizer = ByteTokenizer().detokenizer()
    text = ""
    for count, token_id in enumerate(ids, start=1):
        text += detokenizer.add([token_id])
        assert bytes(ids[: count - 3]).decode(errors="ignore") in text.replace("\ufffd", "") or count <= 3
        assert len(detokenizer._held) <= 3
    assert text + detokenizer.finish() == bytes(ids).decode(errors="replace")


def test_half_a_character_waits_and_a_broken_one_does_not() -> None:
    detokenizer = ByteTokenizer().detokenizer()
    assert [detokenizer.add([byte]) for byte in "🦙".encode()] == ["", "", "", "🦙"]
    assert detokenizer.add(b"\xff") == "\ufffd"
    assert detokenizer.add(b"\xf0\x9f") == ""
    assert detokenizer.add(b"a") == "\ufffda"
    assert detokenizer.add(b"\xe2\x82") == ""
    assert (detokenizer.finish(), detokenizer.finish()) == ("\ufffd", "")


def test_leading_space(fallback: HFTokenizer) -> None:
    """An answer loses it, as the library's decode does; a special token before it changes nothing."""
    answer = fallback.encode("a", False)
    detokenizer = fallback.detokenizer()
    assert (detokenizer.add([1]), detokenizer.add(answer), detokenizer.add(answer)) == ("", "a", " a")
    assert fallback.decode([1, *answer]) == "a"


def test_good_characters_of_a_broken_byte_run_stay(fallback: HFTokenizer) -> None:
    ids = [3 + byte for byte in "é".encode() + b"\xff"]
    assert fallback.decode(ids) == "é\ufffd"


def test_an_answer_that_begins_inside_a_character(byte_level: HFTokenizer) -> None:
    for tokenizer in (byte_level, ByteTokenizer()):
        ids = tokenizer.encode("a🦙", False)
        assert tokenizer.detokenizer().add(ids[-2:] + tokenizer.encode("b", False)) == "\ufffd\ufffdb"


@pytest.mark.parametrize("kind", ["CTC", "BPEDecoder"])
def test_other_decoders_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedDecoderError, match=kind):
        decoder_steps({"type": "Sequence", "decoders": [{"type": kind}]})


def test_plain_decoders_are_supported() -> None:
    assert decoder_steps(None) == set()
    assert decoder_steps({"type": "WordPiece"}) == {"WordPiece"}
    with pytest.raises(UnsupportedDecoderError, match="Strip"):
        decoder_steps({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Strip"}]})
