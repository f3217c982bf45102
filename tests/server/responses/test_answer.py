"""The events of a response: their order, their numbers, and that they add up to what it is in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from engines.types import FinishReason, Usage
from server.choice import Piece
from server.errors import APIError, InvalidRequest, Overloaded, RateLimited
from server.responses.answer import ResponseBuilder
from server.text.answer import CallPiece
from server.wire.common import encode
from server.wire.response_body import IN_PROGRESS, QUEUED, ReasoningConfig, ResponseBody

USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, reasoning_tokens=1)
TERMINAL = {"response.completed", "response.incomplete", "response.failed", "error"}
_sdk_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def body(status: str = IN_PROGRESS) -> ResponseBody:
    return ResponseBody(
        id="resp_1",
        created_at=1,
        status=status,
        background=status == QUEUED,
        instructions=None,
        max_output_tokens=None,
        max_tool_calls=None,
        model="m@1",
        parallel_tool_calls=True,
        previous_response_id=None,
        prompt_cache_key=None,
        reasoning=ReasoningConfig(),
        safety_identifier=None,
        store=True,
        temperature=1.0,
        text={"format": {"type": "text"}},
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        truncation="disabled",
        metadata={},
    )


def told(builder: ResponseBuilder, pieces: Sequence[Piece], end: str = "finish") -> list[dict[str, Any]]:
    events = [*builder.create(), *builder.start()]
    for piece in pieces:
        events += builder.add([piece])
    match end:
        case "finish":
            events += builder.finish(USAGE)
        case "fail":
            events += builder.fail(Overloaded("gone"), USAGE)
        case _:
            events += builder.cancel(USAGE)
    return [json.loads(encode(event)) for event in events]


def text(words: str) -> Piece:
    return Piece(0, words)


def ended(reason: FinishReason = FinishReason.STOP) -> Piece:
    return Piece(0, "", reason)


CALL = (CallPiece(0, "", "call_1", "f"), CallPiece(0, '{"a"'), CallPiece(0, ": 1}"))


def test_an_answer_of_words() -> None:
    events = told(ResponseBuilder(body()), [text("Hel"), text("lo"), ended()])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    response = events[-1]["response"]
    (message,) = response["output"]
    assert message["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert (response["status"], message["status"]) == ("completed", "completed")
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 5,
    }


def test_thoughts_words_and_calls_are_items_of_their_own() -> None:
    pieces = [Piece(0, "", reasoning="hm"), text("\n"), text("so"), Piece(0, "", calls=CALL), ended()]
    output = told(ResponseBuilder(body()), pieces)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert output[0]["summary"] == []
    assert output[1]["content"][0]["text"] == "\nso"
    assert (output[2]["call_id"], output[2]["name"], output[2]["arguments"]) == ("call_1", "f", '{"a": 1}')


def test_white_space_before_a_call_is_no_message() -> None:
    output = told(ResponseBuilder(body()), [text("\n\n"), Piece(0, "", calls=CALL), text(" "), ended()])[-1]
    assert [item["type"] for item in output["response"]["output"]] == ["function_call"]


@pytest.mark.parametrize("pieces", [[ended()], [text("\n"), ended()], [Piece(0, "", reasoning="hm"), ended()]])
def test_an_answer_without_words_is_a_message_too(pieces: list[Piece]) -> None:
    last = told(ResponseBuilder(body()), pieces)[-1]["response"]["output"][-1]
    assert last["type"] == "message"
    assert last["content"][0]["text"] == "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("reason", "why"),
    [(FinishReason.LENGTH, "max_output_tokens"), (FinishReason.CONTENT_FILTER, "content_filter")],
)
def test_an_answer_that_was_cut_is_incomplete_and_so_is_its_last_item(reason: FinishReason, why: str) -> None:
    pieces = [Piece(0, "", calls=CALL), Piece(0, "", calls=(CallPiece(1, '{"b', "call_2", "g"),)), ended(reason)]
    last = told(ResponseBuilder(body()), pieces)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": why}
    assert last["response"]["completed_at"] is None
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Overloaded("x"), "server_error"),
        (RateLimited("x"), "rate_limit_exceeded"),
        (InvalidRequest("x"), "invalid_prompt"),
    ],
)
def test_a_failure_keeps_what_there_is(error: APIError, code: str) -> None:
    builder = ResponseBuilder(body())
    builder.create()
    builder.add([text("Hel")])
    (event,) = builder.fail(error)
    response = json.loads(encode(event))["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": code, "message": "x"})
    assert response["output"][0]["content"][0]["text"] == "Hel"
    assert response["output"][0]["status"] == "incomplete"


def test_reasoning_is_sealed_where_it_is_asked_for() -> None:
    builder = ResponseBuilder(body(), lambda thought: f"sealed {thought}")
    output = told(builder, [Piece(0, "", reasoning="hm"), text("so"), ended()])[-1]["response"]["output"]
    assert output[0]["encrypted_content"] == "sealed hm"


def test_what_began_anew_is_void() -> None:
    pieces = [text("Hel"), Piece(0, "", is_anew=True), text("Lo"), ended()]
    builder = ResponseBuilder(body())
    for piece in pieces:
        builder.add([piece])
    builder.finish(USAGE)
    assert json.loads(encode(builder.body))["output"][0]["content"][0]["text"] == "Lo"


def test_one_in_the_background_is_queued_first() -> None:
    events = told(ResponseBuilder(body(QUEUED)), [text("a"), ended()])
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]


words = st.text(st.sampled_from("ab \n"), min_size=1, max_size=3)
arguments = st.builds(CallPiece, st.just(0), words)
opened = st.builds(CallPiece, st.just(0), words | st.just(""), st.just("call_1"), st.just("f"))
calls = st.tuples(opened, arguments) | st.tuples(opened) | st.tuples(opened, opened)
any_piece = st.one_of(
    st.builds(Piece, st.just(0), words),
    st.builds(Piece, st.just(0), st.just(""), reasoning=words),
    st.builds(Piece, st.just(0), words | st.just(""), reasoning=words | st.just(""), calls=calls),
)
reasons = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS])


@given(st.lists(any_piece, max_size=8), reasons, st.sampled_from(["finish", "fail", "cancel"]))
def test_events_add_up(pieces: list[Piece], reason: FinishReason, end: str) -> None:
    builder = ResponseBuilder(body())
    events = told(builder, [*pieces, Piece(0, "", reason)], end)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    for event in events:
        _sdk_event.validate_python(event)
    _check_items(events, json.loads(encode(builder.body))["output"], is_whole=end == "finish")


def _check_items(events: list[dict[str, Any]], output: list[dict[str, Any]], *, is_whole: bool) -> None:
    """One after another, each opened before its deltas, which are its text, and then closed."""
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
    assert added == list(range(len(output)))
    assert list(done) == added if is_whole else list(done) == added[: len(done)]
    deltas = dict.fromkeys(added, "")
    for event in events:
        if event["type"].endswith(".delta"):
            assert event["item_id"] == output[event["output_index"]]["id"]
            deltas[event["output_index"]] += event["delta"]
        elif event["type"].endswith(("_text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == deltas[event["output_index"]]
    for index, item in enumerate(output):
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert whole == deltas[index]
        assert index not in done or done[index] == item
