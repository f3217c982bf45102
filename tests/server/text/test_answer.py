"""One answer as its client reads it, from tokens."""

from __future__ import annotations

from dataclasses import replace

from server.text.answer import AnswerPiece, AnswerStream, CallPiece, joined
from server.text.formats.format import HERMES
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer

THOUGHTS = "<think>\nhm\n</think>\n\n"
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def stream(*stops: str, max_calls: int | None = None) -> AnswerStream:
    reader = replace(HERMES, thinks=True).reader({"f"}, opened=False)
    ids = iter("ab")
    return AnswerStream(TextStream(ByteTokenizer().detokenizer(), stops), reader, lambda: next(ids), max_calls)


def read(answer: AnswerStream, text: str, size: int) -> AnswerPiece:
    data = text.encode()
    pieces = [answer.add(list(data[i : i + size])) for i in range(0, len(data), size)]
    return joined([*pieces, answer.finish()])


def arguments(piece: AnswerPiece) -> list[str]:
    texts: dict[int, str] = {}
    for call in piece.calls:
        texts[call.index] = texts.get(call.index, "") + call.arguments
    return list(texts.values())


def test_however_many_tokens_come_together() -> None:
    for size in (1, 3, 1000):
        answer = stream()
        piece = read(answer, THOUGHTS + "Hello. " + CALL + CALL, size)
        assert (piece.text, piece.reasoning, arguments(piece)) == ("Hello.", "hm", ['{"a": 1}'] * 2)
        assert [(c.id, c.name) for c in piece.calls if c.id] == [("a", "f"), ("b", "f")]
        assert answer.num_reasoning_tokens == len("\nhm\n</think>")
        assert answer.num_calls == 2


def test_more_calls_than_were_asked_for_are_not_told_of() -> None:
    answer = stream(max_calls=1)
    piece = read(answer, CALL + CALL, 5)
    assert piece.calls[0] == CallPiece(0, "", "a", "f")
    assert arguments(piece) == ['{"a": 1}']


def test_a_stop_string_ends_what_is_read() -> None:
    piece = read(stream("stop"), THOUGHTS + "Hello stop now", 4)
    assert (piece.text, piece.stop) == ("Hello ", "stop")


def test_what_is_held_back_comes_with_the_end() -> None:
    piece = read(stream(), THOUGHTS + "a <tool", 3)
    assert piece.text == "a <tool"
