"""An answer's pieces, told again in fewer of them."""

from __future__ import annotations

import pytest

from engines.types import FinishReason, Usage
from server.cache.recording import Recording, decode, encode, record, replayed
from server.choice import Piece, WholeChoice, compact
from server.text.answer import CallPiece
from server.text.logprobs import LikelyToken, ToldToken

CALLS = [
    (CallPiece(0, "", "call_1", "f"), CallPiece(0, '{"a"')),
    (CallPiece(0, ": 1}"), CallPiece(1, "{}", "call_2", "g")),
]
WORD = LikelyToken(b"Wo", "Wo", -1.5)
TOKENS = (ToldToken(WORD, (WORD,), 0), ToldToken(WORD, (), 2))
PIECES = [
    Piece(0, "", reasoning="thin"),
    Piece(1, "other"),
    Piece(0, "Wo", reasoning="king", calls=CALLS[0], vectors={0: b"0"}, tokens=TOKENS[:1]),
    Piece(
        0, "rds", FinishReason.STOP, calls=CALLS[1], vectors={1: b"1"}, stop="END", tokens=TOKENS[1:], mean_logprob=-2.0
    ),
    Piece(1, "!", FinishReason.LENGTH),
]


def test_each_choice_becomes_one_piece() -> None:
    first, second = compact(PIECES)
    calls = (CallPiece(0, '{"a": 1}', "call_1", "f"), CallPiece(1, "{}", "call_2", "g"))
    vectors = {0: b"0", 1: b"1"}
    assert first == Piece(0, "Words", FinishReason.STOP, "thinking", calls, False, vectors, "END", TOKENS, -2.0)
    assert second == Piece(1, "other!", FinishReason.LENGTH)


@pytest.mark.parametrize("name", [name for name in Piece.__struct_fields__ if name not in ("index", "is_anew")])
def test_nothing_of_a_piece_is_lost(name: str) -> None:
    """A field that is added later has to be put together too: give it a value in PIECES."""
    empty = getattr(Piece(0, ""), name)
    assert any(getattr(piece, name) != empty for piece in PIECES), f"PIECES has no '{name}'"
    assert getattr(compact(PIECES)[0], name) != empty


@pytest.mark.parametrize("cut", range(1, len(PIECES)))
def test_it_does_not_matter_where_it_was_cut(cut: int) -> None:
    assert compact([*compact(PIECES[:cut]), *compact(PIECES[cut:])]) == compact(PIECES)


def test_it_tells_the_same_as_all_of_them() -> None:
    one, all_of_them = WholeChoice(), WholeChoice()
    for piece in PIECES:
        if piece.index == 0:
            all_of_them.add(piece)
    one.add(compact(PIECES)[0])
    assert one.answer() == all_of_them.answer()


def test_what_began_again_is_void() -> None:
    (piece,) = compact([Piece(0, "lost"), Piece(0, "", is_anew=True), Piece(0, "kept", FinishReason.STOP)])
    assert (piece.text, piece.is_anew) == ("kept", True)
    assert not record([piece], Usage()).pieces[0].is_anew


def test_a_recording_is_the_same_when_it_is_read_back() -> None:
    recording = record(PIECES, Usage(5, 1, 7, 2))
    assert decode(encode(recording)) == recording
    assert replayed(recording.usage) == Usage(5, 5, 7, 2)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1", b"no recording", encode(Recording([], Usage()))[:-3]])
def test_anything_else_is_no_recording(data: bytes) -> None:
    assert decode(data) is None


@pytest.mark.parametrize("reason", [None, FinishReason.CONTENT_FILTER, FinishReason.ABORT, FinishReason.ERROR])
def test_only_complete_answers_are_replayed(reason: FinishReason | None) -> None:
    assert not record([Piece(0, "a", FinishReason.STOP), Piece(1, "b", reason)], Usage()).is_replayable
