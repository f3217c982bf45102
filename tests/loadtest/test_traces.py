"""Traces in both formats: small ones made here, and the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.records import BenchError
from loadtest.traces import TraceRow, TraceWorkload, read_trace
from loadtest.workloads import Draw, Stream, take

TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpora" / "traces"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,0
"""
MOONCAKE = """{"timestamp": 27000, "input_length": 600, "output_length": 4, "hash_ids": [7, 8]}
{"timestamp": 0, "input_length": 1100, "output_length": 9, "hash_ids": [7, 9, 10]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azure(tmp_path: Path) -> None:
    first, second = read_trace(write(tmp_path, AZURE))
    assert first == TraceRow(0.0, 374, 44)
    assert (second.at_s, second.input_tokens) == (pytest.approx(4.314579), 396)


def test_mooncake_comes_in_order_of_time(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path, MOONCAKE)) == [TraceRow(0.0, 1100, 9, (7, 9, 10)), TraceRow(27.0, 600, 4, (7, 8))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a line of JSON"),
        ("a,b\n1,2\n", "ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        (AZURE + "2023-11-16 18:15:51,x,1\n", "trace:4: .*'x'"),
        (AZURE + "2023-11-16 18:15:51,-1,1\n", "trace:4: -1 tokens"),
        (AZURE + "soon,1,1\n", "trace:4: .*soon"),
        (MOONCAKE + "{}\n", "trace:3: .*timestamp"),
        (MOONCAKE + '{"timestamp": 1, "input_length": -1, "output_length": 1}\n', "trace:3: .*input_length"),
        ('{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1]}\n', "trace:1: .*every 512"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BenchError, match=words) as caught:
        read_trace(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot read the trace"):
        read_trace(tmp_path / "none")


def workload(folder: Path, text: str = MOONCAKE, **options: float) -> TraceWorkload:
    return TraceWorkload("trace", tuple(read_trace(write(folder, text))), **options)  # type: ignore[arg-type]


def test_rows_that_shared_a_block_share_its_words(tmp_path: Path) -> None:
    long, short = (str(request.prompt).split(" ") for request in take(workload(tmp_path), 2, Draw(0)))
    assert (len(long), len(short)) == (1100, 600)
    assert long[:512] == short[:512]
    assert long[512:600] != short[512:600]


def test_another_seed_stream_or_variant_shares_nothing(tmp_path: Path) -> None:
    draws = (Draw(0), Draw(1), Draw(0, Stream.WARMUP), Draw(0, variant=1))
    starts = {str(take(workload(tmp_path), 1, draw)[0].prompt)[:80] for draw in draws}
    assert len(starts) == 4


def test_scaled_lengths_keep_what_is_shared(tmp_path: Path) -> None:
    long, short = take(workload(tmp_path, scale=0.1), 2, Draw(0))
    assert (long.input_tokens, long.max_tokens, short.input_tokens, short.max_tokens) == (110, 1, 60, 1)
    first, second = (str(request.prompt).split(" ") for request in (long, short))
    assert (len(first), len(second)) == (110, 60)
    assert first[:51] == second[:51]
    assert first[51:60] != second[51:60]


def test_bounds_cut_and_are_counted(tmp_path: Path) -> None:
    cut = workload(tmp_path, max_input=1000)
    assert [request.input_tokens for request in take(cut, 2, Draw(0))] == [1000, 600]
    assert (cut.num_cut(2), workload(tmp_path).num_cut(2)) == (1, 0)


def test_no_answer_is_of_no_tokens(tmp_path: Path) -> None:
    assert [request.max_tokens for request in take(workload(tmp_path, AZURE), 2, Draw(0))] == [44, 1]


def test_a_trace_ends(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="2 requests, 3 are asked for"):
        take(workload(tmp_path), 3, Draw(0))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("AzureLLMInferenceTrace_code.csv", 8819, (4808, 10)),
        ("AzureLLMInferenceTrace_conv.csv", 19366, (374, 44)),
        ("mooncake_conversation_trace.jsonl", 12031, (6758, 500)),
        ("mooncake_synthetic_trace.jsonl", 3993, (40160, 6)),
    ],
)
def test_the_real_ones(name: str, count: int, first: tuple[int, int]) -> None:
    if not (TRACES / name).is_file():
        pytest.skip(f"the optional folder of shared corpora has no {name} here")
    rows = read_trace(TRACES / name)
    assert (len(rows), rows[0].at_s, (rows[0].input_tokens, rows[0].output_tokens)) == (count, 0.0, first)
    for request in take(TraceWorkload(name, tuple(rows), 0.02), 50, Draw(0)):
        assert len(str(request.prompt).split(" ")) == request.input_tokens
