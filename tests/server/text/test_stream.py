import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from server.text.stop import StopMatcher
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def stream(stops: Sequence[str] = (), min_tokens: int = 0) -> TextStream:
    return TextStream(TOKENIZER.detokenizer(), stops, min_tokens)


def feed(made: TextStream, text: str) -> list[tuple[str, bool]]:
    """One token a call; ends at a stop."""
    out = []
    for token_id in text.encode():
        piece = made.add([token_id])
        out.append((piece.text, piece.stopped))
        if piece.stopped:
            break
    return out


def test_plain() -> None:
    made = stream()
    assert feed(made, "aé") == [("a", False), ("", False), ("é", False)]
    assert made.add(b"b\xc3").text == "b"
    assert (made.finish().text, made.finish().text) == ("\ufffd", "")


def test_stop_releases_everything_before_it() -> None:
    made = stream(["ENDE"])
    assert feed(made, "a seENDE more") == [*[(letter, False) for letter in "a se"], *[("", False)] * 3, ("", True)]
    assert made.add(b"more").text == ""
    assert made.finish().text == ""


def test_a_stop_within_one_call() -> None:
    piece = stream(["x", "lo"]).add(b"hello")
    assert (piece.text, piece.stop) == ("hel", "lo")


def test_no_stop_before_min_tokens() -> None:
    assert feed(stream(["b"], min_tokens=2), "abcbd") == [("a", False), ("b", False), ("c", False), ("", True)]
    piece = stream(["b"], min_tokens=2).add(b"abcbd")
    assert (piece.text, piece.stopped) == ("abc", True)


def test_a_stop_string_lies_wholly_behind_min_tokens() -> None:
    made = stream(["bc"], min_tokens=2)
    assert [(piece.text, piece.stopped) for piece in (made.add(b"ab"), made.add(b"c"))] == [("ab", False), ("c", False)]
    assert made.add(b"bc").stopped
    assert stream(["é"], min_tokens=1).add("é".encode()).stopped  # its last byte makes the character


def test_min_tokens_that_are_never_reached() -> None:
    made = stream(["b", "\ufffd"], min_tokens=9)
    assert made.add(b"abx").text == "abx"
    piece = made.add(b"yb\xc3")
    assert (piece.text, piece.stopped) == ("yb", False)
    last = made.finish()
    assert (last.text, last.stopped) == ("\ufffd", False)


def test_finish_releases_what_was_held() -> None:
    made = stream(["END"])
    assert "".join(text for text, _ in feed(made, "a secreEN")) == "a secre"
    assert made.finish().text == "EN"
    assert made.finish().text == ""


def test_a_stop_of_replacement_characters_is_found_at_the_end() -> None:
    made = stream(["\ufffd"])
    assert made.add(b"a\xc3").text == "a"
    assert made.finish().stopped


@given(
    st.lists(st.text("abé", min_size=1, max_size=3), max_size=2),
    st.lists(st.sampled_from([b"a", b"b", "é".encode(), b"\xc3", b"c"]), max_size=10).map(b"".join),
    st.integers(0, 6),
    st.randoms(use_true_random=False),
)
def test_pieces_make_up_the_whole(stops: list[str], data: bytes, min_tokens: int, cuts: random.Random) -> None:
    made, out, position, stopped = stream(stops, min_tokens), "", 0, False
    while position < len(data) and not stopped:
        size = cuts.randrange(4)
        piece = made.add(data[position : position + size])
        out, stopped, position = out + piece.text, piece.stopped, position + size
    out += made.finish().text

    text = data.decode(errors="replace")
    early = TOKENIZER.detokenizer().add(data[:min_tokens])
    if stops and len(data) >= min_tokens:
        matcher = StopMatcher(stops)
        text = early + matcher.feed(text[len(early) :]).text + matcher.flush()
    assert out == text


# --- engines that give text


def feed_text(made: TextStream, pieces: Sequence[str]) -> list[tuple[str, bool]]:
    """Each is one token's."""
    fed = [made.add_text(piece, 1) for piece in pieces]
    return [(piece.text, piece.stopped) for piece in fed]


def test_text_goes_the_same_way() -> None:
    assert feed_text(stream(), ["a", "", "é"]) == [("a", False), ("", False), ("é", False)]
    assert feed_text(stream(["END"]), ["a E", "ND more"]) == [("a ", False), ("", True)]


def test_no_stop_in_text_before_min_tokens() -> None:
    assert feed_text(stream(["b"], min_tokens=2), ["a", "b", "c", "b"])[1:] == [("b", False), ("c", False), ("", True)]
