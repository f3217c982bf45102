"""What is given on a command line, and what does not belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from loadtest.loads import ClosedLoop, GammaArrivals, TraceArrivals
from loadtest.options import WorkloadOptions, choose_loads, integers, num_warmup, numbers
from loadtest.records import BenchError
from loadtest.traces import TraceWorkload
from loadtest.workloads import Drawn, RequestSize, SharedPrefix, WorkloadName


def test_levels() -> None:
    assert numbers("0.5,2") == (0.5, 2)
    assert integers("1,16") == (1, 16)


@pytest.mark.parametrize("text", ["", "a", "0", "-1", "1,,2", "nan", "inf", "4,4"])
def test_what_are_no_levels(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        numbers(text)


def test_half_a_user() -> None:
    with pytest.raises(typer.BadParameter, match="whole"):
        integers("1.5")


CHAT = Drawn(WorkloadName.CHAT, RequestSize(4, 4))
TRACE = TraceWorkload("t", ())


def test_loads() -> None:
    assert choose_loads(None, None, None, None, CHAT) == [ClosedLoop(16)]
    assert choose_loads(integers("1,4"), None, None, None, CHAT) == [ClosedLoop(1), ClosedLoop(4)]
    assert choose_loads(None, numbers("2"), 0.5, None, CHAT) == [GammaArrivals(2.0, 0.5)]
    assert choose_loads(None, None, None, numbers("1,3"), TRACE) == [TraceArrivals(1), TraceArrivals(3)]


def test_arrivals_are_of_one_kind() -> None:
    with pytest.raises(BenchError, match="--concurrency and --rate"):
        choose_loads(integers("1"), numbers("2"), None, None, CHAT)
    with pytest.raises(BenchError, match="--burstiness"):
        choose_loads(integers("1"), None, 2.0, None, CHAT)
    with pytest.raises(BenchError, match="--trace-speed"):
        choose_loads(None, None, None, numbers("1"), CHAT)


def test_warm_up() -> None:
    assert [num_warmup(ClosedLoop(4), None), num_warmup(ClosedLoop(4), 0), num_warmup(GammaArrivals(1), None)] == [
        4,
        0,
        8,
    ]


def build(name: WorkloadName | None = None, **options: Any) -> Any:
    values = {"input_tokens": None, "output_tokens": None} | options
    return WorkloadOptions(name, **values).build()


def test_sizes_unless_told() -> None:
    assert build() == Drawn(WorkloadName.CHAT, RequestSize(1024, 1024))
    assert build(WorkloadName.FIXED, input_tokens=9) == Drawn(WorkloadName.FIXED, RequestSize(9, 128))
    assert build(WorkloadName.SHARED_PREFIX) == SharedPrefix(RequestSize(512, 128), 256, 4)


def test_a_trace_needs_no_other_name(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 1}\n')
    built = build(trace=path, trace_scale=0.5, input_tokens=4)
    assert isinstance(built, TraceWorkload)
    assert (built.source, built.scale, built.max_input) == ("t.jsonl", 0.5, 4)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (WorkloadName.TRACE, {}, "--trace"),
        (WorkloadName.CHAT, {"trace": Path("x")}, "--trace means nothing to the chat workload"),
        (None, {"trace_scale": 0.5}, "--trace-scale means nothing"),
        (WorkloadName.FIXED, {"prefixes": 3}, "--prefixes means nothing to the fixed workload, only to shared-prefix"),
    ],
)
def test_what_does_not_belong_together(name: WorkloadName | None, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        build(name, **options)
