import json

import pytest

from loadtest.answer import AnswerReader, describe_error
from loadtest.records import Failure, TokenUsage


def event(payload: object) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {text}\n\n".encode()


def delta(**fields: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


FINISH = event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None})
DONE = event("[DONE]")


def read(*chunks: bytes) -> AnswerReader:
    """Chunk i arrives at second i."""
    reader = AnswerReader()
    for now, chunk in enumerate(chunks):
        reader.feed(chunk, float(now))
    return reader


def reason(reader: AnswerReader) -> str | None:
    failure = reader.end_of_body("text/event-stream")
    return failure.reason if failure is not None else None


def test_a_role_or_an_empty_delta_is_no_output() -> None:
    reader = read(delta(role="assistant", content=""), delta(content="a"), FINISH, DONE)
    assert reader.content_times_s == [1.0]
    assert reader.done_s == 3.0
    assert reason(reader) is None


@pytest.mark.parametrize(
    "fields",
    [{"reasoning_content": "a"}, {"reasoning": "a"}, {"refusal": "a"}, {"tool_calls": [{"index": 0}]}],
)
def test_every_kind_of_output_counts(fields: dict[str, object]) -> None:
    assert read(delta(**fields), DONE).content_times_s == [0.0]


def test_a_server_that_says_no_done_ends_behind_its_reason() -> None:
    for chunks, expected in (((delta(content="a"), FINISH), None), ((delta(content="a"),), "cut stream")):
        reader = AnswerReader(says_done=False)
        for chunk in chunks:
            reader.feed(chunk, 0.0)
        assert reason(reader) == expected


def test_completions_text() -> None:
    assert read(event({"choices": [{"text": "a"}]}), event({"choices": [{"text": ""}]})).content_times_s == [0.0]


def test_events_that_arrive_together_share_a_time() -> None:
    assert read(b"", delta(content="a") + delta(content="b")).content_times_s == [1.0, 1.0]


def test_the_last_usage_counts() -> None:
    first, last = ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": n}} for n in (1, 2))
    assert read(event(first), event(last)).usage == TokenUsage(3, 2)


def test_cut_without_done() -> None:
    assert reason(read(delta(content="a"), FINISH)) == "cut stream"


def test_a_torn_done_is_a_cut() -> None:
    assert reason(read(delta(content="a"), DONE.rstrip())) == "cut stream"


def test_no_event_at_all() -> None:
    failure = read(b'{"choices": []}').end_of_body("application/json")
    assert failure == Failure("not an event stream", "the body ended without an event (application/json)")


def test_an_empty_answer_that_finished_is_success() -> None:
    assert reason(read(FINISH, DONE)) is None


def test_a_stream_of_nothing_is_a_failure() -> None:
    assert reason(read(DONE)) == "empty stream"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            event({"error": {"message": "m", "type": "server_error", "code": None}}),
            "error event server_error",
        ),
        (event({"error": {"message": "m", "type": "t", "code": "overloaded"}}), "error event overloaded"),
        (event({"error": "plain words"}), "error event"),
        (
            event({"object": "error", "message": "m", "type": "BadRequest", "code": 400}),
            "error event BadRequest",
        ),
        (b"event: error\n" + event({"message": "m"}), "error event"),
        (event("{not json"), "malformed event"),
        (event({"choices": 3}), "malformed event"),
        (b'data: {"choices":[{"text":"\xff"}]}\n\n', "malformed event"),
        (event("[" * 100_000), "malformed event"),
    ],
)
def test_a_bad_event_fails_the_request_for_good(data: bytes, expected: str) -> None:
    reader = read(delta(content="a"), data, DONE)
    assert reason(reader) == expected
    assert not reader.done


def test_what_follows_done_is_ignored() -> None:
    reader = read(delta(content="a"), DONE + event({"error": "late"}), delta(content="b"))
    assert reason(reader) is None
    assert reader.content_times_s == [0.0]


@pytest.mark.parametrize(
    ("body", "label", "message"),
    [
        (b'{"error":{"message":"m","type":"t","code":"c"}}', "c", "m"),
        (b'{"error":{"message":"m","type":"t","code":400}}', "t", "m"),
        (b'{"detail":"Not Found"}', "", "Not Found"),
        (b"<html>Bad Gateway</html>", "", "<html>Bad Gateway</html>"),
        (b'["odd"]', "", "['odd']"),
        (b"", "", ""),
    ],
)
def test_describe_error(body: bytes, label: str, message: str) -> None:
    error = describe_error(body)
    assert (error.label, error.message) == (label, message)
