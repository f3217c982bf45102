"""A message's stream, as Anthropic's SDK puts it together again, against the whole answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from engines.types import FinishReason, Usage
from server.choice import Piece, WholeChoice
from server.errors import Overloaded
from server.generation import Generation
from server.message_events import MessageEvents
from server.streaming import EventStream
from server.text.answer import CallPiece
from server.wire.common import ResponseHead
from server.wire.message_answer import message
from tests.server.test_streaming import Client, PaperGeneration, run

HEAD = ResponseHead("msg-1", 1, "m@1", "fp")
USAGE = Usage(7, 2, 5, 3)
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def paper(usage: Usage = USAGE) -> Generation:
    caller = SimpleNamespace(request_id="req-1")
    job = SimpleNamespace(head=HEAD, prompts=[SimpleNamespace(token_ids=[1, 2, 3])], caller=caller)
    return cast(Generation, SimpleNamespace(job=job, usage=usage))


def parsed(data: bytes) -> list[dict[str, Any]]:
    """Every event, named as its type."""
    events = []
    for part in data.decode().split("\n\n")[:-1]:
        name, line = part.split("\n")
        body = json.loads(line.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        events.append(body)
    return events


def streamed(pieces: Sequence[Piece], size: int = 1, *, hides_thinking: bool = False) -> list[dict[str, Any]]:
    events = MessageEvents(paper(), hides_thinking=hides_thinking)
    data = events.opening()
    for start in range(0, len(pieces), size):
        data += events.of(list(pieces[start : start + size]))
    return parsed(data + events.closing())


def whole(pieces: Sequence[Piece], *, hides_thinking: bool = False) -> dict[str, Any]:
    choice = WholeChoice()
    for piece in pieces:
        choice.add(piece)
    body: dict[str, Any] = json.loads(message(HEAD, [choice.answer()], USAGE, hides_thinking=hides_thinking))
    Message.model_validate_json(json.dumps(body), strict=True)
    return body


def accumulated(events: Sequence[dict[str, Any]]) -> Any:
    snapshot, buffers = None, {}  # type: ignore[var-annotated]
    for event in events:
        read = EVENT.validate_json(json.dumps(event), strict=True)
        snapshot = accumulate_event(event=read, current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    return snapshot.to_dict()


def check_order(events: Sequence[dict[str, Any]]) -> None:
    """One block after the other, each opened, filled and closed; what they are in is one message."""
    first, *inner, delta, last = events
    assert [first["type"], delta["type"], last["type"]] == ["message_start", "message_delta", "message_stop"]
    index, is_open = -1, False
    for event in inner:
        kind = event["type"]
        assert is_open is (kind != "content_block_start")
        index += kind == "content_block_start"
        is_open = kind != "content_block_stop"
        assert event["index"] == index
    assert not is_open


def call(index: int, arguments: str) -> list[CallPiece]:
    parts = [CallPiece(index, part) for part in arguments]
    return [CallPiece(index, "", f"id{index}", f"f{index}"), *parts]


WORDS = st.text("ab é", max_size=4)


@st.composite
def answers(draw: st.DrawFn) -> list[Piece]:
    """Thoughts, words and calls as the formats have them, cut into pieces anyhow; words may follow a call."""
    pieces = [Piece(0, "", reasoning=draw(WORDS)) for _ in range(draw(st.integers(0, 2)))]
    pieces += [Piece(0, draw(WORDS)) for _ in range(draw(st.integers(0, 3)))]
    for index in range(draw(st.integers(0, 3))):
        parts = call(index, draw(st.sampled_from(["", "{}", '{"a": 1}', '{"a": {"b": "x"}}'])))
        cut = draw(st.integers(1, len(parts)))
        pieces += [Piece(0, draw(WORDS), calls=tuple(parts[:cut])), Piece(0, draw(WORDS), calls=tuple(parts[cut:]))]
    reason = draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS]))
    stop = draw(st.none() | st.just("END")) if reason is not FinishReason.LENGTH else None
    return [*pieces, Piece(0, draw(WORDS), reason, stop=stop)]


@given(answers(), st.integers(1, 5))
def test_events_are_in_order_and_make_up_the_whole(pieces: list[Piece], size: int) -> None:
    events = streamed(pieces, size)
    check_order(events)
    once, answer = accumulated(events), whole(pieces)
    assert {key: once[key] for key in ("id", "model", "role", "stop_reason", "stop_sequence", "usage")} == {
        key: answer[key] for key in ("id", "model", "role", "stop_reason", "stop_sequence", "usage")
    }
    for kind, key in (("text", "text"), ("thinking", "thinking"), ("thinking", "signature")):
        parts = [[block[key] for block in made["content"] if block["type"] == kind] for made in (once, answer)]
        assert "".join(parts[0]) == "".join(parts[1])
    tools = [[block for block in made["content"] if block["type"] == "tool_use"] for made in (once, answer)]
    assert tools[0] == tools[1]


@given(answers(), st.integers(0, 20))
def test_every_stream_ends_once(pieces: list[Piece], cut: int) -> None:
    """In message_stop, or in the error that cut it."""
    script: list[Any] = [[piece] for piece in pieces]
    if is_cut := cut < len(pieces):
        script[cut:] = [Overloaded("The engine stopped.")]
    reader, generation = Client(), cast(Any, PaperGeneration(*script))
    generation.job.caller = SimpleNamespace(request_id="req-1")
    generation.job.prompts = [SimpleNamespace(token_ids=[1])]
    events = MessageEvents(generation)
    response = EventStream(generation, events, keep_alive=60, write_timeout=60)
    if cut == 0 and is_cut:  # nothing was sent: an HTTP error
        with pytest.raises(Overloaded):
            asyncio.run(run(response, reader))
        return
    asyncio.run(run(response, reader))
    kinds = [event["type"] for event in parsed(reader.body)]
    assert kinds[0] == "message_start"
    assert kinds[-1] == ("error" if is_cut else "message_stop")
    assert kinds.count("error") + kinds.count("message_stop") == 1


def test_words_behind_a_call_do_not_cut_it() -> None:
    parts = call(0, "{}")
    pieces = [Piece(0, "", calls=tuple(parts[:2])), Piece(0, "Done.", FinishReason.TOOL_CALLS, calls=tuple(parts[2:]))]
    once = accumulated(streamed(pieces))
    assert [block["type"] for block in once["content"]] == ["tool_use", "text"]
    assert once["content"][0]["input"] == {}


def test_the_rest_of_a_call_that_was_broken_off_goes_into_no_other_block() -> None:
    begun, *parts = call(0, '{"a')
    pieces = [
        Piece(0, "", calls=(begun, *parts[:2])),
        Piece(0, "x"),
        Piece(0, "", FinishReason.STOP, calls=(parts[2],)),
    ]
    events = streamed(pieces)
    check_order(events)
    assert accumulated(events)["content"][1]["text"] == "x"


@pytest.mark.parametrize(
    ("reason", "stop", "told"),
    [
        (FinishReason.STOP, None, ("end_turn", None)),
        (FinishReason.STOP, "x", ("stop_sequence", "x")),
        (FinishReason.TOOL_CALLS, None, ("tool_use", None)),
        (FinishReason.TOOL_CALLS, "x", ("stop_sequence", "x")),
        (FinishReason.LENGTH, None, ("max_tokens", None)),
        (FinishReason.CONTENT_FILTER, None, ("refusal", None)),
    ],
)
def test_stop_reasons(reason: FinishReason, stop: str | None, told: tuple[str, str | None]) -> None:
    answer = whole([Piece(0, "a", reason, stop=stop)])
    assert (answer["stop_reason"], answer["stop_sequence"]) == told


def test_usage_counts_cached_tokens_apart() -> None:
    usage = whole([Piece(0, "a", FinishReason.STOP)])["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (5, 2, 0)
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (5, {"thinking_tokens": 3})


def test_a_prompt_is_counted_before_its_first_token() -> None:
    (start,) = parsed(MessageEvents(paper(Usage())).opening())
    assert start["message"]["usage"]["input_tokens"] == 3


def test_thinking_that_is_not_to_be_shown_is_its_signature() -> None:
    pieces = [Piece(0, "", reasoning="hm"), Piece(0, "a", FinishReason.STOP)]
    shown, hidden = (accumulated(streamed(pieces, hides_thinking=hides))["content"][0] for hides in (False, True))
    assert (shown["thinking"], hidden["thinking"]) == ("hm", "")
    assert shown["signature"] == hidden["signature"] == whole(pieces, hides_thinking=True)["content"][0]["signature"]
    assert whole(pieces, hides_thinking=True)["content"][0]["thinking"] == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [("", {}), ('{"a": [1, 2', {"a": [1, 2]}), ('{"a": "cut', {}), ("[1]", {}), ("nonsense", {})],
)
def test_input_that_is_cut_short(arguments: str, told: dict[str, Any]) -> None:
    pieces = [Piece(0, "", calls=tuple(call(0, arguments))), Piece(0, "", FinishReason.LENGTH)]
    assert whole(pieces)["content"][0]["input"] == told


def test_a_failure_and_a_ping() -> None:
    events = MessageEvents(paper())
    (failure,) = parsed(events.failure(Overloaded("Away.")))
    assert failure == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Away."},
        "request_id": "req-1",
    }
    assert parsed(events.ping) == [{"type": "ping"}]
