import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from server.text.tokenizer import INERT, ByteTokenizer, HFTokenizer, TokenizerError, load_tokenizer
from tests.server.text.conftest import is_special

REAL = ["tokenizers/gpt2", "tokenizers/qwen3", "tokenizers/gpt-oss", "tokenizers/minimind", "tokenizers/mistral-v3"]
REAL += ["models/stories260K", "models/babyllama-tok105", "models/tinyllm-chat", "models/tiny-llama"]
REAL += ["tokenizers/all-minilm-l6-v2"]
SAMPLE = "Hello  wörld,\n\n it's 2024 🦙 e\u0301 \u00a0x<s>y</s> "
SAMPLE += "<|im_start|>user\nhi<|im_end|>\n[INST] a [/INST]<|end|> <think>b"


def copy(folder: Path, target: Path, **configs: Any) -> Path:
    """A folder with some of its JSON files changed: `config={...}` merges into config.json."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    for name, change in configs.items():
        path = target / f"{name}.json"
        old = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(old | change))
    return target


def test_what_the_files_say(byte_level: HFTokenizer, fallback: HFTokenizer) -> None:
    ids = {t: byte_level.encode(t, False)[0] for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>")}
    assert byte_level.eos_token_ids == {ids["<|im_end|>"], ids["<|endoftext|>"]}
    assert byte_level.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert byte_level.bos_token_id is None
    assert byte_level.decode([ids["<|im_start|>"], ids["<think>"]]) == "<think>"
    assert byte_level.vocab_size == max(ids.values()) + 1
    assert fallback.eos_token_ids == {2}
    assert fallback.bos_token_id == 1
    assert fallback.encode("a", True)[0] == 1
    assert fallback.encode("a", False)[0] != 1


@pytest.mark.parametrize(("add", "starts_with_bos"), [(True, True), (None, True), (False, False)])
def test_add_bos_token(fallback_folder: Path, tmp_path: Path, add: bool | None, starts_with_bos: bool) -> None:
    tokenizer = load_tokenizer(copy(fallback_folder, tmp_path, tokenizer_config={"add_bos_token": add}))
    assert (tokenizer.encode("th", True)[0] == 1) is starts_with_bos
    assert tokenizer.encode("th", False)[0] != 1


def test_add_bos_token_where_the_post_processor_does_not(byte_level_folder: Path, tmp_path: Path) -> None:
    config = {"add_bos_token": True, "bos_token": "<|im_start|>"}
    tokenizer = load_tokenizer(copy(byte_level_folder, tmp_path, tokenizer_config=config))
    assert tokenizer.encode("a", True) == [tokenizer.bos_token_id, *tokenizer.encode("a", False)]


def test_special_tokens_map_fills_in(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copy(byte_level_folder, tmp_path, special_tokens_map={"bos_token": "<|im_start|>", "eos_token": "x"})
    tokens = load_tokenizer(folder).special_tokens
    assert tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_tokens_that_only_the_configuration_has(byte_level_folder: Path, tmp_path: Path) -> None:
    size = load_tokenizer(byte_level_folder).vocab_size
    declared = {"added_tokens_decoder": {str(size): {"content": "<|tool|>", "special": True}}}
    tokenizer = load_tokenizer(copy(byte_level_folder, tmp_path / "a", tokenizer_config=declared))
    assert tokenizer.encode("<|tool|>", False) == [size]
    assert tokenizer.decode([size]) == ""

    declared = {"added_tokens_decoder": {str(size + 7): {"content": "<|tool|>", "special": True}}}
    with pytest.raises(TokenizerError, match=f"added token {size + 7}"):
        load_tokenizer(copy(byte_level_folder, tmp_path / "b", tokenizer_config=declared))


def test_a_named_token_outside_the_vocabulary_is_left_out(byte_level_folder: Path, tmp_path: Path) -> None:
    config = {"pad_token": "[PAD]", "extra_special_tokens": {"thinking": "<think>"}}
    tokenizer = load_tokenizer(copy(byte_level_folder, tmp_path, tokenizer_config=config))
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>"}


def test_vocab_and_merges_give_the_same_ids(byte_level_folder: Path, byte_level: HFTokenizer, tmp_path: Path) -> None:
    Backend.from_file(str(byte_level_folder / "tokenizer.json")).model.save(str(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the user 🦙", False) == byte_level.encode("the user 🦙", False)
    assert tokenizer.decode(tokenizer.encode("the user 🦙", False)) == "the user 🦙"

    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(TokenizerError, match=r"Qwen2Tokenizer needs its tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer.json", "{", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", '{"model": 1}', "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: a JSON object"),
        ("generation_config.json", "{,}", "generation_config.json: not readable"),
        ("special_tokens_map.json", "\udcff", "special_tokens_map.json: not readable"),
    ],
)
def test_broken_files(byte_level_folder: Path, tmp_path: Path, name: str, content: str, expected: str) -> None:
    copy(byte_level_folder, tmp_path)
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(TokenizerError, match=expected) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="neither"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer(tmp_path / "none")


def test_lone_surrogates_are_replaced(byte_level: HFTokenizer) -> None:
    assert byte_level.decode(byte_level.encode("a\ud800b", False)) == "a\ufffdb"
    assert byte_level.decode(byte_level.encode_inert("a\ud800b")) == "a\ufffdb"
    assert ByteTokenizer().decode(ByteTokenizer().encode("a\ud800b", False)) == "a?b"


def test_byte_tokenizer() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé", True) == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3, 0xA9, 300, -1]) == "aé"
    assert (tokenizer.token_bytes(97), tokenizer.token_bytes(256)) == (b"a", b"")


@given(st.text(max_size=20))
def test_token_bytes_make_up_the_text(byte_level: HFTokenizer, text: str) -> None:
    ids = byte_level.encode(text, False)
    assert b"".join(map(byte_level.token_bytes, ids)).decode(errors="replace") == byte_level.decode(ids)


SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HOSTILE = st.lists(st.sampled_from([*SPECIALS, "<|im_", "end|>", "<", "a ", "\n", "<think>", INERT, "é"]), max_size=12)


@given(HOSTILE.map("".join))
def test_inert_text_has_no_special_tokens(byte_level: HFTokenizer, text: str) -> None:
    ids = byte_level.encode_inert(byte_level.make_inert(text))
    assert not any(is_special(byte_level, token_id) for token_id in ids)
    assert byte_level.decode(ids) == text.replace(INERT, "")


@given(st.one_of(st.text(max_size=20), HOSTILE.map("".join)).map(lambda text: text.replace(INERT, "")))
def test_without_marks_inert_encoding_is_the_ordinary_one(byte_level: HFTokenizer, text: str) -> None:
    assert byte_level.encode_inert(text) == byte_level.encode(text, False)


def test_overlapping_special_tokens_are_all_marked(byte_level_folder: Path, tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {}}
    size = load_tokenizer(byte_level_folder).vocab_size
    config["added_tokens_decoder"] = {str(size): {"content": "|x|", "special": True}}
    tokenizer = load_tokenizer(copy(byte_level_folder, tmp_path, tokenizer_config=config))
    assert size not in tokenizer.encode_inert(tokenizer.make_inert("|x|x|x|"))


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_as_transformers_does(name: str, data: Path, shared_tokenizer: Callable[[str], HFTokenizer]) -> None:
    from transformers import AutoTokenizer

    ours, theirs = shared_tokenizer(name), AutoTokenizer.from_pretrained(data / name)
    texts = [SAMPLE, (data / "corpora/alice.txt").read_text()[:2000], "", " ", "\n"]
    for text in texts:
        for special in (True, False):
            assert ours.encode(text, special) == theirs(text, add_special_tokens=special)["input_ids"]
        ids = ours.encode(text, False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.encode_inert(text) == ids
    assert ours.bos_token_id == theirs.bos_token_id
    assert theirs.eos_token_id is None or theirs.eos_token_id in ours.eos_token_ids
    assert all(theirs.special_tokens_map[name] == token for name, token in ours.special_tokens.items())


@pytest.mark.shared
@pytest.mark.parametrize(("golden", "name"), [("gpt-2", "tokenizers/gpt2"), ("qwen2", "tokenizers/qwen3")])
def test_golden_ids(golden: str, name: str, data: Path, shared_tokenizer: Callable[[str], HFTokenizer]) -> None:
    """llama.cpp's own test vectors: a text between separators, a line of ids each."""
    texts = (data / f"golden/{golden}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = (data / f"golden/{golden}.out").read_text().split("\n")
    for text, line in zip(texts, lines, strict=False):
        assert shared_tokenizer(name).encode(text, False) == [int(i) for i in line.split()], text
    assert len(texts) > 40


@pytest.mark.shared
def test_golden_greedy_texts(data: Path, shared_tokenizer: Callable[[str], HFTokenizer]) -> None:
    for model, rows in json.loads((data / "golden/greedy.json").read_text()).items():
        tokenizer = shared_tokenizer(f"models/{model}")
        for row in rows:
            assert tokenizer.decode(row["new_ids"]) == row["text"]
            detokenizer = tokenizer.detokenizer()
            assert "".join(detokenizer.add([i]) for i in row["new_ids"]) + detokenizer.finish() == row["text"]


def test_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, server.text.prompt, server.text.stream; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_pieces_and_all_of_the_text(byte_level: HFTokenizer, fallback: HFTokenizer) -> None:
    ids = byte_level.encode("<|im_start|>a b", False)
    assert byte_level.decode_all(ids) == "<|im_start|>a b"
    assert byte_level.pieces(ids)[0] == "<|im_start|>"
    assert len(byte_level.pieces(ids)) == len(ids)
    assert byte_level.pieces([10**6]) == [""]
    assert fallback.pieces([1, 2]) == ["<s>", "</s>"]
    assert ByteTokenizer().pieces([104, 195]) == ["h", "Ã"]
    assert ByteTokenizer().decode_all(list("hé".encode())) == "hé"


def test_a_pair_of_texts(data: Path) -> None:
    """As transformers gives it: [CLS] first [SEP] second [SEP], the second with segment 1."""
    folder = data / "tokenizers" / "all-minilm-l6-v2"
    encoding = Backend.from_file(str(folder / "tokenizer.json"))
    encoding.no_truncation()
    encoding.no_padding()
    expected = encoding.encode("what is a panda", "a bear, in China")
    row = load_tokenizer(folder).encode_pair("what is a panda", "a bear, in China")
    assert row.token_ids == expected.ids
    assert [0] * row.num_first + [1] * (len(row.token_ids) - row.num_first) == expected.type_ids
    assert 0 < row.num_first < len(row.token_ids)


def test_a_pair_of_bytes(byte_level: HFTokenizer) -> None:
    assert byte_level.decode(byte_level.encode_pair("a", "b").token_ids) == "ab"
    pair = ByteTokenizer().encode_pair("ab", "c")
    assert (pair.token_ids, pair.num_first) == ([97, 98, 99], 2)
