"""Masked and restored again, a text is what it was."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.pii.detector import Detector
from server.text.pii.masker import Masker
from server.text.pii.placeholders import Placeholders
from server.text.pii.restorer import Restorer

DETECTOR = Detector(patterns={"employee": "EMP-[0-9]{6}"})
PARTS = (
    "bob@x.com", "eve@x.com", "+49 30 1234567", "4111 1111 1111 1111", "10.0.0.1", "EMP-123456", "<EMAIL_1>",
    "<EMAIL_2>", "<EMPLOYEE_1>", "<TEXT_1>", "<EMAIL_", "1>", "<", ">", " ", "a", "é", "\\n", "\ud800",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def restored(masker: Masker, text: str, cuts: random.Random | None = None) -> str:
    restorer, out, position = Restorer(masker.placeholders), "", 0
    while position < len(text):
        size = cuts.randrange(1, 5) if cuts else 1
        out += restorer.feed(text[position : position + size])
        position += size
        assert restorer.num_held < max(masker.placeholders.longest, 1)
    return out + restorer.flush()


@given(TEXTS | st.text(), st.randoms(use_true_random=False))
def test_restoring_undoes_masking(text: str, cuts: random.Random) -> None:
    masker = Masker(DETECTOR)
    assert restored(masker, masker.text(text), cuts) == text


@given(st.lists(TEXTS, max_size=4), TEXTS, st.randoms(use_true_random=False))
def test_any_split_is_as_the_whole(prompts: list[str], answer: str, cuts: random.Random) -> None:
    """Whatever the model writes, what it made up included."""
    masker = Masker(DETECTOR)
    for prompt in prompts:
        masker.text(prompt)
    whole = Restorer(masker.placeholders)
    assert restored(masker, answer, cuts) == whole.feed(answer) + whole.flush()


def test_the_same_value_has_the_same_placeholder() -> None:
    masker = Masker(DETECTOR)
    assert masker.text("bob@x.com, EMP-123456, eve@x.com") == "<EMAIL_1>, <EMPLOYEE_1>, <EMAIL_2>"
    assert masker.text("bob@x.com and 10.0.0.1") == "<EMAIL_1> and <IP_1>"
    assert masker.counts == {"email": 3, "employee": 1, "ip": 1}
    assert masker.text("nothing") == "nothing"


def test_what_a_client_wrote_like_a_placeholder_is_its_own() -> None:
    """Whether before or after the value that has it."""
    masker = Masker(DETECTOR)
    masked = masker.text("<EMAIL_1> bob@x.com <TEXT_1>")
    assert masked == "<TEXT_1> <EMAIL_1> <TEXT_2>"
    assert restored(masker, masked) == "<EMAIL_1> bob@x.com <TEXT_1>"
    assert masker.counts == {"email": 1}


def test_what_stands_for_nothing_stays() -> None:
    masker = Masker(DETECTOR)
    masker.text("bob@x.com")
    for text in ("<EMAIL_2>", "<EMAIL_1", "<EMAIL_11>", "<email_1>", "a < b > c", "<<EMAIL_1"):
        assert restored(masker, text) == text
    assert restored(masker, "<<EMAIL_1>>") == "<bob@x.com>"


def test_live_where_nothing_can_follow() -> None:
    masker = Masker(DETECTOR)
    masker.text("bob@x.com")
    restorer = Restorer(masker.placeholders)
    assert [restorer.feed(part) for part in ("a <b", " <", "EMA", "IL", "_1", "> c<")] == [
        "a <b",
        " ",
        "",
        "",
        "",
        "bob@x.com c",
    ]
    assert (restorer.flush(), restorer.flush()) == ("<", "")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('{"to": "bob@x.com",  "n": [1, true, null]}', '{"to": "<EMAIL_1>", "n": [1, true, null]}'),
        ('{"to":  "nobody"}', '{"to":  "nobody"}'),
        ('{"to": "bob\\u0040x.com"}', '{"to": "<EMAIL_1>"}'),
        ('{"text": "a\\nbob@x.com"}', '{"text": "a\\n<EMAIL_1>"}'),
        ('{"card": 4111111111111111}', '{"card": "<CARD_1>"}'),
        ('{"bob@x.com": {"x": 1.5}}', '{"<EMAIL_1>": {"x": 1.5}}'),
        ('{"to": bob@x.com', '{"to": <EMAIL_1>'),
        ("[" * 100_000, "[" * 100_000),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_json(text: str, masked: str) -> None:
    assert Masker(DETECTOR).json_text(text) == masked


def test_structures() -> None:
    value: dict[str, Any] = {"a": ["bob@x.com", {"b": ("10.0.0.1", False, 7, 10**50)}]}
    assert Masker(DETECTOR).json(value) == {"a": ["<EMAIL_1>", {"b": ["<IP_1>", False, 7, 10**50]}]}
    assert json.dumps(Masker(DETECTOR).json(None)) == "null"


def test_values_are_in_no_representation() -> None:
    masker = Masker(DETECTOR)
    masker.text("bob@x.com")
    assert repr(masker.placeholders) == "Placeholders(1 values)"
    assert "bob" not in repr(masker) + str(masker.placeholders)


def test_the_digest_is_of_values_in_their_places() -> None:
    def digest(*values: str) -> bytes:
        placeholders = Placeholders()
        for value in values:
            placeholders.of(value, "EMAIL")
        return placeholders.digest()

    assert digest("a", "b") == digest("a", "b")
    assert len({digest("a", "b"), digest("b", "a"), digest("a"), digest("ab")}) == 4
