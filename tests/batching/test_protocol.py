import asyncio
import contextlib
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    Abort,
    Deltas,
    ProtocolError,
    Started,
    Stats,
    Submit,
    WorkerConfig,
    frame,
    from_worker,
    messages_in,
    name_of_protocol,
    read_message,
    to_worker,
)
from batching.scheduler import SchedulerConfig
from batching.stats import WorkerStats
from engines.hosting import SessionAction
from engines.types import (
    EngineConfig,
    EngineInfo,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    OutputDelta,
    RequestError,
    SamplingParams,
    TextSpan,
    VectorInfo,
)

texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False)
counts = st.integers(0, 2**62)
token_ids = st.lists(st.integers(0, 2**31), max_size=20)
sampling = st.builds(
    SamplingParams,
    max_tokens=counts,
    min_tokens=counts,
    temperature=numbers,
    logit_bias=st.dictionaries(st.integers(0, 2**31), numbers, max_size=5),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop_token_ids=st.frozensets(st.integers(0, 2**31), max_size=5),
)
requests = st.builds(
    GenerationRequest, texts, texts, token_ids, sampling, numbers, numbers, st.integers(-9, 9), st.binary(max_size=40)
)
errors = st.builds(RequestError)
deltas = st.builds(OutputDelta, texts, token_ids, error=st.none() | errors)
to_worker_messages = st.builds(Submit, requests) | st.builds(Abort, texts)
from_worker_messages = st.builds(Deltas, st.lists(deltas, max_size=4)) | st.builds(Stats, st.builds(WorkerStats))


def fed(*parts: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    for part in parts:
        reader.feed_data(part)
    reader.feed_eof()
    return reader


@settings(max_examples=40)
@given(st.lists(to_worker_messages, max_size=4))
async def test_what_a_gateway_says_arrives(messages):
    reader = fed(*(frame(message) for message in messages))
    assert [await read_message(reader, to_worker) for _ in messages] == messages
    with pytest.raises(asyncio.IncompleteReadError):
        await read_message(reader, to_worker)


@settings(max_examples=30)
@given(st.lists(from_worker_messages, max_size=4))
async def test_what_a_worker_says_arrives(messages):
    reader = fed(*(frame(message) for message in messages))
    assert [await read_message(reader, from_worker) for _ in messages] == messages


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | texts


@given(
    st.builds(
        WorkerConfig,
        texts,
        st.builds(EngineConfig, texts, options=st.dictionaries(texts, json_values, max_size=3)),
        st.builds(SchedulerConfig, counts, finite, finite),
    )
)
def test_a_worker_reads_its_configuration_from_one_line(config):
    line = msgspec.json.encode(config)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=WorkerConfig) == config


@given(st.builds(Started, st.none() | st.builds(EngineInfo), texts))
def test_a_worker_answers_in_one_line(started):
    line = msgspec.json.encode(started)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=Started) == started


@settings(max_examples=200)
@given(st.binary(max_size=60))
async def test_what_is_no_message_is_told_apart_from_the_end(payload):
    try:
        message = await read_message(fed(struct.pack(">I", len(payload)), payload), to_worker)
    except ProtocolError:
        return
    assert isinstance(message, Submit | Abort)


@given(to_worker_messages, st.data())
async def test_damaged_messages(message, data):
    damaged = bytearray(frame(message))
    position = data.draw(st.integers(4, len(damaged) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        await read_message(fed(bytes(damaged)), to_worker)


async def test_a_frame_that_is_too_long_is_not_waited_for():
    with pytest.raises(ProtocolError, match="bytes"):
        await read_message(fed(struct.pack(">I", MAX_FRAME_BYTES + 1)), to_worker)


async def test_a_nest_of_arrays_is_no_message():
    payload = b"\x91" * 100_000
    with pytest.raises(ProtocolError):
        await read_message(fed(struct.pack(">I", len(payload)), payload), to_worker)


async def test_half_a_frame_is_the_end():
    with pytest.raises(asyncio.IncompleteReadError):
        await read_message(fed(frame(Abort("r"))[:-1]), to_worker)


def test_frames_in_one_piece():
    messages = [Abort("a"), Abort("b")]
    data = b"".join(frame(message) for message in messages)
    assert messages_in(data, to_worker) == messages
    assert messages_in(b"", to_worker) == []


@pytest.mark.parametrize("data", [b"\0\0", frame(Abort("a"))[:-1], frame(Abort("a")) + b"\0", b"\0\0\0\1\xc1"])
def test_frames_that_are_none(data):
    with pytest.raises(ProtocolError):
        messages_in(data, to_worker)


@pytest.mark.parametrize(
    "kind", [Submit, Stats, GenerationRequest, SamplingParams, Grammar, TextSpan, RequestError, EngineInfo, VectorInfo]
)
def test_another_field_is_another_protocol(monkeypatch, kind):
    assert name_of_protocol() == PROTOCOL
    monkeypatch.setitem(kind.__annotations__, "one_more", "int")
    assert name_of_protocol() != PROTOCOL


@pytest.mark.parametrize("kind", [FinishReason, ErrorCode, GrammarKind, SessionAction])
def test_another_member_is_another_protocol(monkeypatch, kind):
    monkeypatch.setattr(kind, "_member_names_", kind._member_names_[1:])
    assert name_of_protocol() != PROTOCOL
