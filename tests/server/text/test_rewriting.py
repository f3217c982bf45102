"""What a client reads of an answer whose texts are changed on the way: whole and in pieces, wherever they were cut."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.answer import AnswerPiece, AnswerStream, joined
from server.text.content_filter import ContentFilter
from server.text.formats.format import HARMONY, HERMES
from server.text.pii.placeholders import Placeholders
from server.text.rewriting import Rewriting
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer

THINKING = replace(HERMES, thinks=True)
TEXT = (
    "<think>the secret of bob</think>\n\nA secret for <EMAIL_1>.\n"
    '<tool_call>{"name": "f", "arguments": {"to": "<EMAIL_1>", "é": "s\\u0065cret", "n": 5}}</tool_call>'
)


def placeholders(*values: str) -> Placeholders:
    made = Placeholders()
    for value in values:
        made.of(value, "EMAIL")
    return made


def stream(
    terms: Sequence[str] = (),
    values: Sequence[str] = (),
    *,
    stops: Sequence[str] = (),
    thinks: bool = True,
    names: Sequence[str] = ("f",),
    is_json: bool = False,
) -> AnswerStream:
    rewriting = Rewriting(ContentFilter([], terms), placeholders(*values), is_json, frozenset(names))
    reader = replace(THINKING, thinks=thinks).reader(set(names), opened=False)
    text = TextStream(ByteTokenizer().detokenizer(), stops)
    return AnswerStream(text, reader, lambda: "id", rewriter=rewriting.rewriter())


def pieces_of(answer: AnswerStream, text: str, cuts: random.Random | None = None) -> list[AnswerPiece]:
    """One token a byte; as many at once as the cuts say, else one."""
    data, position, pieces = text.encode(), 0, []
    while position < len(data) and not (pieces and pieces[-1].stopped):
        size = cuts.randrange(1, 9) if cuts else 1
        pieces.append(answer.add(list(data[position : position + size])))
        position += size
    return pieces if pieces and pieces[-1].stopped else [*pieces, answer.finish()]


def read(answer: AnswerStream, text: str, cuts: random.Random | None = None) -> AnswerPiece:
    return joined(pieces_of(answer, text, cuts))


def arguments(piece: AnswerPiece) -> list[str]:
    texts: dict[int, str] = {}
    for call in piece.calls:
        texts[call.index] = texts.get(call.index, "") + call.arguments
    return list(texts.values())


@given(st.randoms(use_true_random=False))
def test_everything_that_a_client_reads(cuts: random.Random) -> None:
    piece = read(stream(["secret", "É"], ["bob@x.com"]), TEXT, cuts)
    assert (piece.reasoning, piece.text) == ("the *** of bob", "A *** for bob@x.com.")
    assert list(map(json.loads, arguments(piece))) == [{"to": "bob@x.com", "***": "***", "n": 5}]


def test_the_mask_comes_last() -> None:
    assert read(stream(["bob"], ["bob@x.com"]), "to <EMAIL_1>").text == "to ***@x.com"
    assert read(stream(["EMAIL_1"], ["bob@x.com"]), "to <EMAIL_1>").text == "to bob@x.com"


def test_stop_strings_and_markers_are_what_the_model_wrote() -> None:
    assert read(stream([], ["bob@x.com"], stops=["b@x"]), "to <EMAIL_1>!").text == "to bob@x.com!"
    stopped = read(stream(["bad"], ["bob@x.com"], stops=["AIL_1"]), "a bad <EMAIL_1>")
    assert (stopped.text, stopped.stop) == ("a *** <EM", "AIL_1")
    called = read(stream(["tool", "name", "think"]), TEXT)
    assert (len(arguments(called)), called.reasoning) == (1, "the secret of bob")


def test_a_stop_lets_out_what_was_held_back() -> None:
    answer = stream(["secret"], stops=["END"], thinks=False, names=())
    assert [piece.text for piece in pieces_of(answer, "a seEND more")] == ["a", " ", "", "", "", "", "se"]


def test_text_that_goes_on_behind_a_call_is_one_text() -> None:
    """What was let out before the call is not taken back: the rest of the term is masked."""
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for text, seen in (("a sec" + call + "ret b", "a sec***b"), ("a sec" + call + "ond", "a second")):
        piece = read(stream(["secret "]), text)
        assert (piece.text, arguments(piece)) == (seen, ["{}"])


def test_text_is_told_before_the_call_that_follows_it() -> None:
    pieces = pieces_of(stream(["secret"]), 'a sec<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    first_call = next(i for i, piece in enumerate(pieces) if piece.calls)
    assert "".join(piece.text for piece in pieces[: first_call + 1]) == "a sec"
    thoughts = pieces_of(stream(["secret"]), "<think>a sec</think>well")
    first_words = next(i for i, piece in enumerate(thoughts) if piece.text)
    assert "".join(piece.reasoning for piece in thoughts[: first_words + 1]) == "a sec"


def test_names_that_the_client_gave_stay() -> None:
    """Others, which some models make up, are masked."""
    text = '<|channel|>commentary to=functions.{name} <|message|>{{"a": "<EMAIL_1> secret"}}<|call|>'
    rewriting = Rewriting(ContentFilter([], ["secret"]), placeholders("b@x.de"), names=frozenset({"secret_of"}))
    for name, seen in (("secret_of", "secret_of"), ("my_secret", "my_***")):
        reader = HARMONY.reader({"secret_of"}, opened=False)
        answer = AnswerStream(TextStream(ByteTokenizer().detokenizer()), reader, rewriter=rewriting.rewriter())
        piece = read(answer, text.format(name=name))
        assert [call.name for call in piece.calls if call.name] == [seen]
        assert arguments(piece) == ['{"a": "b@x.de ***"}']


def test_an_answer_of_a_schema_stays_json() -> None:
    text = '{"a": "x\\nabc <EMAIL_1>", "1": 1}'
    made = stream(["nab", "1"], ['"q"\n'], thinks=False, names=(), is_json=True)
    assert json.loads(read(made, text).text) == {"a": 'x\nabc "q"\n', "***": 1}


def test_more_than_one_call() -> None:
    call = '<tool_call>{{"name": "f", "arguments": {{"a": "{}"}}}}</tool_call>'
    piece = read(stream(["secret"]), call.format("sec") + call.format("ret") + call.format("secret"))
    assert arguments(piece) == ['{"a": "sec"}', '{"a": "ret"}', '{"a": "***"}']


def test_arguments_that_never_end() -> None:
    piece = read(stream(["secret"]), '<tool_call>{"name": "f", "arguments": {"a": "a secr')
    assert arguments(piece) == ['{"a": "a secr']


@given(st.text("<EMAIL_12> sectrb", max_size=60), st.randoms(use_true_random=False))
def test_any_split_is_as_the_whole_and_little_is_held_back(text: str, cuts: random.Random) -> None:
    terms, values = ["secret", "bob", "sec"], ["bob@x", "secret"]
    longest_term, longest_placeholder = 6, len("<EMAIL_1>")
    channel = Rewriting(ContentFilter([], terms), placeholders(*values)).text()
    whole = Rewriting(ContentFilter([], terms), placeholders(*values)).text()
    expected = whole.feed(text) + whole.flush()
    out, position = "", 0
    while position < len(text):
        size = cuts.randrange(1, 5)
        out += channel.feed(text[position : position + size])
        position += size
        assert expected.startswith(out)
        so_far = Rewriting(ContentFilter([], terms), placeholders(*values)).text()
        seen = so_far.feed(text[:position]) + so_far.flush()
        assert len(seen) - len(out) <= longest_term - 1 + longest_placeholder - 1
    assert out + channel.flush() == expected


@pytest.mark.parametrize("terms", [["secret"], ["aab", "aabaac"], ["ß", "ssss"]])
def test_a_mask_holds_back_less_than_its_longest_term(terms: list[str]) -> None:
    mask = ContentFilter([], terms).output_mask()
    assert mask is not None
    most = 0
    for letter in random.Random(0).choices("secrtabß", k=5000):
        mask.feed(letter)
        most = max(most, mask.num_held)
    assert 0 < most < max(len(term.casefold()) for term in terms)


def test_nothing_to_change() -> None:
    assert Rewriting().rewriter() is None
    assert not Rewriting(ContentFilter(["blocked"]), Placeholders()).alters
    assert Rewriting(ContentFilter([], ["masked"])).alters
    assert Rewriting(ContentFilter(), placeholders("a")).alters
