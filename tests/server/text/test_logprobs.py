"""Which tokens made which text: each is told once, with the first text that it is part of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.types import TokenLogprobs
from server.text.answer import AnswerStream
from server.text.detokenizer import IncrementalDetokenizer
from server.text.formats.format import HERMES, LLAMA
from server.text.formats.thinking import PlainReader, ThinkingReader
from server.text.logprobs import IMPOSSIBLE, LikelyToken, TokenTeller, ToldToken
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
SPECIAL = 300  # has no bytes


def answer(stops: Sequence[str] = (), reader: object = None, *, tells_all: bool = False) -> AnswerStream:
    teller = TokenTeller(TOKENIZER.detokenizer(), lambda i: f"<{i}>" if i == SPECIAL else "", tells_all=tells_all)
    return AnswerStream(TextStream(TOKENIZER.detokenizer(), stops), reader, tokens=teller)  # type: ignore[arg-type]


def likely(position: int) -> TokenLogprobs:
    return TokenLogprobs(-float(position), [])


def run(stream: AnswerStream, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Of each token: the text that it let out, and the numbers of the tokens that were told with it."""
    assert stream.tokens is not None
    steps = []
    for position, token_id in enumerate(ids):
        piece = stream.add([token_id], [likely(position)])
        steps.append((piece.text, numbers(stream.tokens.take())))
        if piece.stopped:
            return steps
    steps.append((stream.finish().text, numbers(stream.tokens.take())))
    return steps


def numbers(told: Sequence[ToldToken]) -> list[int]:
    return [round(-(each.token.logprob or 0)) for each in told]


def test_a_token_comes_with_its_text() -> None:
    assert run(answer(), b"ab") == [("a", [0]), ("b", [1]), ("", [])]


def test_the_halves_of_a_character_come_with_it() -> None:
    assert run(answer(), "a✅".encode()) == [("a", [0]), ("", []), ("", []), ("✅", [1, 2, 3]), ("", [])]


def test_a_character_that_is_never_whole() -> None:
    assert run(answer(), b"\xe2\x9c") == [("", []), ("", []), ("\ufffd", [0, 1])]
    assert run(answer(), b"\xe2a")[1] == ("\ufffda", [0, 1])


def test_what_may_be_a_stop_string_is_held_back_with_its_tokens() -> None:
    assert run(answer(["xyz"]), b"axyb") == [("a", [0]), ("", []), ("", []), ("xyb", [1, 2, 3]), ("", [])]


def test_the_tokens_of_a_stop_string_are_no_content() -> None:
    assert run(answer(["xyz"]), b"axyz") == [("a", [0]), ("", []), ("", []), ("", [])]


def test_a_special_token_is_no_content() -> None:
    assert run(answer(), [97, SPECIAL, 98]) == [("a", [0]), ("", []), ("b", [2]), ("", [])]
    assert run(answer(tells_all=True), [97, SPECIAL, 98]) == [("a", [0]), ("", [1]), ("b", [2]), ("", [])]


def test_the_token_that_ends_an_answer_is_told_to_those_who_want_all() -> None:
    for tells_all, expected in ((False, [0]), (True, [0, 1])):
        stream = answer(tells_all=tells_all)
        assert stream.tokens is not None
        stream.add([97], [likely(0)])
        stream.tokens.add(98, likely(1), is_text=False)
        stream.finish()
        told = stream.tokens.take()
        assert numbers(told) == expected
        assert [each.token.text for each in told] == ["a", "b"][: len(expected)]


def thinking(*, opened: bool = False) -> ThinkingReader:
    return ThinkingReader(PlainReader(), opened=opened)


@pytest.mark.parametrize("blank", ["", "\n\n"])
def test_reasoning_is_no_content(blank: str) -> None:
    text = f"<think>{blank}the the{blank}</think>{blank}the end"
    steps = run(answer(reader=thinking()), text.encode())
    first = text.rindex("the end")
    assert "".join(words for words, _ in steps) == "the end"
    assert [number for _, told in steps for number in told] == list(range(first, len(text)))


def test_a_reader_that_finds_nothing_changes_nothing() -> None:
    text = "<thi>  a <b> \n"
    for reader in (thinking(), HERMES.reader(["f"], opened=False), LLAMA.reader(["f"], opened=False)):
        steps = run(answer(reader=reader), text.encode())
        shown = "".join(words for words, _ in steps)
        told = [number for _, each in steps for number in each]
        assert bytes(text.encode()[number] for number in told).decode() == shown


def test_a_tool_call_is_no_content() -> None:
    text = 'well: <tool_call>\n{"name": "f", "arguments": {"a": "well"}}\n</tool_call>'
    steps = run(answer(reader=HERMES.reader(["f"], opened=False)), text.encode())
    assert [number for _, told in steps for number in told] == list(range(len("well:")))


@pytest.mark.parametrize("tail", ["}final", "} } a", "b}b"])
def test_content_that_begins_in_the_token_that_ends_a_call(tail: str) -> None:
    call = '{"name": "f", "parameters": {"a": 1}'
    vocabulary = [*(call[i : i + 1].encode() for i in range(len(call))), b"}" + tail[:1].encode()]
    vocabulary += [character.encode() for character in tail[1:]]
    detokenizers = [IncrementalDetokenizer(lambda i: vocabulary[i]) for _ in range(2)]
    stream = AnswerStream(
        TextStream(detokenizers[0]), LLAMA.reader(["f"], opened=False), tokens=TokenTeller(detokenizers[1], str)
    )
    steps = run(stream, range(len(vocabulary)))
    assert "".join(words for words, _ in steps) == tail
    assert [number for _, told in steps for number in told] == list(range(len(call), len(vocabulary)))


def test_json_that_calls_nothing_is_content() -> None:
    text = '{"name": "g", "parameters": {}} or so'
    steps = run(answer(reader=LLAMA.reader(["f"], opened=False)), text.encode())
    assert [number for _, told in steps for number in told] == list(range(len(text)))


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=20), st.lists(st.text("ab✅", min_size=1), max_size=2))
def test_every_token_of_the_content_is_told_once_in_order(chunks: list[bytes], stops: list[str]) -> None:
    """However many come at once, and whatever is held back."""
    stream, text, told = answer(stops), "", []
    assert stream.tokens is not None
    data = b"".join(chunks)
    position = 0
    for chunk in chunks:
        piece = stream.add(list(chunk), [likely(position + i) for i in range(len(chunk))])
        position += len(chunk)
        text += piece.text
        told += stream.tokens.take()
        if piece.stopped:
            break
    else:
        text += stream.finish().text
        told += stream.tokens.take()
    assert numbers(told) == list(range(len(told)))
    assert b"".join(each.token.data for each in told) == data[: len(told)]
    assert data[: len(told)].decode(errors="replace") == text
    whole = data.decode(errors="replace")
    assert [whole[each.offset :][:1] for each in told] == [text[each.offset :][:1] for each in told]


def test_an_echoed_prompt_is_told_first() -> None:
    teller = TokenTeller(TOKENIZER.detokenizer(), lambda _: "", offset=2)
    teller.prompt(b"h\xc3\xa9", [likely(1)])
    assert teller.take() == ()
    teller.prompt(b"h\xc3\xa9", [likely(2)])
    teller.let_out_prompt()
    teller.add(97, likely(3))
    teller.read("a")
    teller.let_out("a")
    told = teller.take()
    assert [each.offset for each in told] == [0, 1, 1, 2]
    assert [each.token.logprob for each in told] == [None, -1, -2, -3]


def test_how_a_token_reads() -> None:
    assert LikelyToken("é".encode(), "", -1.0).text == "é"
    half = LikelyToken(b"\xe2\x9c", "", -1.0)
    assert (half.text, half.escaped) == (None, r"\xe2\x9c")
    assert LikelyToken(b"", "<end>", -1.0).text == "<end>"


def test_no_infinity_is_told() -> None:
    teller = TokenTeller(TOKENIZER.detokenizer(), lambda _: "")
    teller.add(97, TokenLogprobs(-math.inf, [(98, -math.inf), (10**6, -1.0)]))
    teller.read("a")
    teller.let_out("a")
    (told,) = teller.take()
    assert told.token.logprob == told.top[0].logprob == IMPOSSIBLE
    assert told.top[1].text == "<|no token 1000000|>"
