from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import SSEEvent, SSEParser

STREAM = b"".join(
    [
        b": ping\n\n",
        b'data: {"a":1}\n\n',
        b"data: first\r\ndata: second\r\n\r\n",
        b"event: error\rid: 3\rretry: 10\rdata:no space\r\r",
        b"data\n\n",
        b"data:  two spaces\n\n",
        b"unknown: field\n\n",
        b"event: forgotten\n\n",
        "data: höhe 水\u2028\n\n".encode(),
        b"data: [DONE]\n\n",
        b"data: torn",
    ]
)
EVENTS = [
    SSEEvent(b'{"a":1}'),
    SSEEvent(b"first\nsecond"),
    SSEEvent(b"no space", b"error"),
    SSEEvent(b""),
    SSEEvent(b" two spaces"),
    SSEEvent("höhe 水\u2028".encode()),
    SSEEvent(b"[DONE]"),
]


def parse(*chunks: bytes) -> list[SSEEvent]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_whole() -> None:
    assert parse(STREAM) == EVENTS


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_split_at_every_byte(at: int) -> None:
    assert parse(STREAM[:at], STREAM[at:]) == EVENTS


def test_one_byte_at_a_time() -> None:
    assert parse(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_cuts_and_line_ends(cuts: list[int], end: bytes) -> None:
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", end)
    edges = [0, *sorted(cuts), len(stream)]
    assert parse(*(stream[a:b] for a, b in pairwise(edges))) == EVENTS


def test_crlf_cut_in_half_is_one_line_end() -> None:
    assert parse(b"data: a\r", b"\n", b"data: b\r", b"\n\r", b"\n") == [SSEEvent(b"a\nb")]


def test_blank_line_after_a_cut_crlf_still_counts() -> None:
    assert parse(b"data: a\r", b"\n", b"\n") == [SSEEvent(b"a")]


def test_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef", b"\xbb\xbfdata: a\n\n") == [SSEEvent(b"a")]


def test_event_without_its_blank_line_is_not_dispatched() -> None:
    assert parse(b"data: [DONE]\n") == []


def test_event_comes_with_the_byte_that_completes_it() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\r\n\r") == [SSEEvent(b"a")]
    assert parser.feed(b"\n") == []
