"""Tensors' bytes, and what is read from the tensors of answers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tritonclient", reason="penstock[triton] is not installed")

from engines.triton.readers import TextReader, TokenReader
from engines.triton.tensors import TensorSpec, decode
from engines.types import FinishReason
from tests.engines.triton_bench import request


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BYTES", [b"", b"abc", "é".encode()]),
        ("BOOL", [True, False]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("FP32", [0.5, -1.0]),
        ("FP64", [0.1]),
        ("INT64", []),
    ],
)
def test_what_is_encoded_is_decoded(datatype: str, values: list[bytes | float]) -> None:
    assert decode(datatype, TensorSpec("t", datatype, (-1,)).encode(values)) == values


def test_a_value_that_a_tensor_can_t_hold() -> None:
    with pytest.raises(struct.error):
        TensorSpec("t", "INT32", (1,)).encode([2**31])


@pytest.mark.parametrize(("datatype", "bits"), [("INT32", 31), ("UINT32", 32), ("INT64", 63), ("UINT64", 64)])
@given(seed=st.integers(0, 2**63 - 1))
def test_a_seed_fits(datatype: str, bits: int, seed: int) -> None:
    spec = TensorSpec("seed", datatype, (1,))
    assert 0 <= spec.fit(seed) < 2**bits
    assert decode(datatype, spec.encode([spec.fit(seed)])) == [spec.fit(seed)]
    assert spec.fit(seed) == seed or seed >= 2**bits


def test_shapes() -> None:
    assert TensorSpec("t", "INT32", (1,)).shape_of(1) == [1]
    assert TensorSpec("t", "INT32", (-1, 1)).shape_of(1) == [1, 1]
    assert TensorSpec("t", "INT32", (-1, -1)).shape_of(7) == [1, 7]


# --- answers


@given(text=st.text("aé日🦙"), cut=st.integers(1, 4))
def test_the_text_so_far_gives_each_piece_once(text: str, cut: int) -> None:
    """Whatever bytes a token ends at."""
    data = text.encode()
    reader = TextReader(request("p", 99), is_cumulative=True, prompt="")
    ends = [*range(cut, len(data), cut), len(data)]
    pieces = [reader.read({"text_output": [data[:end].decode(errors="replace").encode()]}).text for end in ends]
    assert "".join(pieces) + reader.last().text == text


@pytest.mark.parametrize(
    ("word", "reason"),
    [("length", "length"), ("stop", "stop"), ("FinishReason.LENGTH", "length"), ("abort", "stop"), ("None", "stop")],
)
def test_reasons(word: str, reason: str) -> None:
    reader = TextReader(request("p", 9), is_cumulative=False, prompt="")
    reader.read({"text_output": [b"a"], "finish_reason": [word.encode()]})
    assert reader.last().finish_reason == reason


def test_who_says_nothing_has_stopped_unless_there_are_all_tokens() -> None:
    for count, reason in ((8, FinishReason.STOP), (9, FinishReason.LENGTH)):
        told = TextReader(request("p", 9), is_cumulative=False, prompt="")
        told.read({"text_output": [b"abc"], "num_output_tokens": [count]})
        assert told.last().finish_reason is reason
        untold = TextReader(request("p", 9), is_cumulative=False, prompt="")
        for _ in range(count):
            untold.read({"text_output": [b"a"]})
        assert untold.last().finish_reason is reason


def test_token_ids() -> None:
    reader = TokenReader(request("ab", 9, stop_token_ids=frozenset({7}), min_tokens=2), may_repeat_prompt=True)
    first = reader.read({"output_ids": [97, 98, 7, 5, 0, 0], "sequence_length": [4]})
    assert (first.token_ids, first.finish_reason) == ([7, 5], None)
    last = reader.read({"output_ids": [6, 7, 8]})
    assert (last.token_ids, last.finish_reason) == ([6, 7], FinishReason.STOP)
