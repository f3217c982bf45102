"""The yardstick of the gateway's cost. What it measures is nobody's business here, only that it does."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from loadtest.gateway import report
from loadtest.gateway.load import Load, Part, Requests, Streams, measure
from loadtest.gateway.processes import Cores, children, cpu_s
from loadtest.gateway.raw_http import RawAnswer, RawConnection, post
from loadtest.gateway.subjects import ROOT, Pace, Subject, floor, penstock
from loadtest.records import BenchError

LOAD = Load(rate=200, requests=20, answer_tokens=8, streams=4, stream_tokens=10)
PACE = Pace(streams=4, delay_ms=1)
PART = Part(Requests(200, 0.001, 0.002, 0.004, 500), Streams(6400, 20e-6, 1.0, 250))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Subject]]:
    everywhere = os.sched_getaffinity(0)
    cores, folder = Cores(everywhere, everywhere), tmp_path_factory.mktemp("gateway")
    with ExitStack() as stack:
        both = [stack.enter_context(floor(PACE, cores))]
        both.append(stack.enter_context(penstock("penstock", ROOT, PACE, cores, folder)))
        yield {subject.name: subject for subject in both}


@pytest.mark.parametrize("name", ["floor", "penstock"])
async def test_every_subject_answers_what_it_is_asked(subjects: dict[str, Subject], name: str) -> None:
    part = await measure(subjects[name], LOAD)
    assert 0 < part.requests.p50 <= part.requests.p99
    assert part.requests.answer_bytes > LOAD.answer_tokens
    assert part.streams.token_bytes > 100
    assert 0 < part.streams.events <= 1
    assert cpu_s(subjects[name].pid) > 0


async def test_the_bytes_of_the_floor_are_penstocks(subjects: dict[str, Subject]) -> None:
    request = {"model": "paced", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "stream": True}
    events = {}
    for name, subject in subjects.items():
        answer = await _asked(subject, request)
        events[name] = [(sorted(event), sorted(event["choices"][0])) for event in answer.events]
    assert events["floor"] == events["penstock"]
    assert len(events["floor"]) == 5  # the role, three tokens, the reason


async def test_a_wrong_key_is_no_measurement(subjects: dict[str, Subject]) -> None:
    with pytest.raises(BenchError, match="HTTP 401"):
        await measure(replace(subjects["penstock"], key="wrong"), LOAD)


def test_the_engines_are_not_the_gateway(subjects: dict[str, Subject]) -> None:
    assert len(children(subjects["penstock"].pid)) >= 2  # one for each model
    assert children(subjects["floor"].pid) == []


async def _asked(subject: Subject, body: dict[str, object]) -> RawAnswer:
    connection = await RawConnection.connect("127.0.0.1", subject.port)
    try:
        return await connection.ask(post("/v1/chat/completions", "127.0.0.1", subject.key, body))
    finally:
        connection.close()


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_an_answer_may_come_in_any_pieces(size: int) -> None:
    chunks = b'6\r\ndata: \r\n9\r\n{"a": 1}\n\r\n10\r\n\ndata: [DONE]\n\n\n\r\n0\r\n\r\n'
    whole = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connection = await RawConnection.connect("127.0.0.1", server.sockets[0].getsockname()[1])
        answer = await connection.ask(post("/", "127.0.0.1", "key", {}))
        connection.close()
    assert (answer.status, answer.events) == (200, [{"a": 1}])


async def test_a_server_that_leaves_in_mid_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connection = await RawConnection.connect("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(BenchError):
            await connection.ask(post("/", "127.0.0.1", "key", {}))


def test_ratios_are_those_of_a_round() -> None:
    slow = Part(replace(PART.requests, cpu=0.01, p50=0.032), replace(PART.streams, cpu=1e-3))
    bare = Part(replace(PART.requests, p50=0.001), PART.streams)
    parts = {"floor": [bare], "penstock": [PART], "litellm": [slow]}
    assert report.ratios("litellm", parts) == pytest.approx((10, 50))
    document = report.as_document(LOAD, 10, parts, {"python": "3"})
    assert document["added_p50_s"] == pytest.approx({"floor": 0, "penstock": 0.001, "litellm": 0.031})
    assert json.loads(json.dumps(document))["rounds"]["penstock"][0]["streams"]["cpu"] == 20e-6
    assert "litellm takes 10.0 times Penstock's CPU for an answer, 50.0 times for a token" in report.table(
        LOAD, 10, parts
    )
