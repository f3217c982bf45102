import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import keys

PEPPER = b"pepper"


def test_a_generated_key_has_the_published_form() -> None:
    new = keys.generate()
    brand, penstock, key_id, secret, checksum = new.text.split("-")
    assert (brand, penstock, key_id) == ("sk", "pen", new.id)
    assert (len(key_id), len(secret), len(checksum)) == (8, 43, 8)
    assert keys.parse(new.text) == keys.ParsedKey(new.id)


def test_no_two_keys_are_alike() -> None:
    made = [keys.generate() for _ in range(1000)]
    assert len({key.text for key in made}) == len({key.id for key in made}) == 1000


def test_a_key_is_not_in_its_repr() -> None:
    new = keys.generate()
    assert new.text not in repr(new)


@given(st.data())
def test_one_changed_character_is_noticed(data: st.DataObject) -> None:
    text = keys.generate().text
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != text[position]))
    assert keys.parse(text[:position] + other + text[position + 1 :]) is None


@given(st.data())
def test_a_part_of_a_key_is_none(data: st.DataObject) -> None:
    text = keys.generate().text
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert keys.parse(text[start:end]) == (keys.parse(text) if (start, end) == (0, len(text)) else None)


@given(st.text() | st.from_regex(r"sk-pen-\w{8}-\w{43}-[0-9a-f]{8}", fullmatch=True))
def test_garbage_is_no_key(text: str) -> None:
    assert keys.parse(text) is None


@pytest.mark.parametrize("tail", ["\n", " ", "\x00", "-"])
def test_nothing_may_follow(tail: str) -> None:
    assert keys.parse(keys.generate().text + tail) is None


@given(st.text(string.ascii_letters + string.punctuation, min_size=16, max_size=100))
def test_any_text_of_some_length_may_be_a_key(text: str) -> None:
    assert keys.may_be_key(text)


@pytest.mark.parametrize(
    "text", ["sk-pen-my-own-key-123456", "four words and a digit 5", "schlüssel-mit-umlaut", "é" * 16]
)
def test_an_operator_s_key_has_any_form(text: str) -> None:
    assert keys.may_be_key(text)
    assert keys.parse(text) is None


@pytest.mark.parametrize(
    "text",
    ["", "x" * 15, "x" * 513, "x" * 16 + " ", " " + "x" * 16, "x" * 16 + "\n", "x" * 8 + "\t" + "x" * 8, "\x9f" * 16,
     "\ud800" * 16],
)  # fmt: skip
def test_what_no_header_carries_is_no_key(text: str) -> None:
    assert not keys.may_be_key(text)


def test_digests_depend_on_the_pepper_and_the_text() -> None:
    made = {keys.digest(pepper, text) for pepper in (b"a", b"b") for text in ("x", "y")}
    assert len(made) == 4
    assert {len(digest) for digest in made} == {32}


@given(st.text())
def test_any_text_has_a_digest(text: str) -> None:
    assert keys.digest(PEPPER, text) == keys.digest(PEPPER, text)
    assert len(keys.digest(PEPPER, "\ud800" + text)) == 32
