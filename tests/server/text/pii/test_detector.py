"""What is taken for personal data, what is not, and how often either goes wrong."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.keys import generate
from server.text.pii import detector as module
from server.text.pii.detector import Detector
from server.text.pii.kinds import Kind
from server.text.pii.patterns import PatternError
from tests.server.text.pii.corpus import NEGATIVES, positives

DETECTOR = Detector()
OWN = {"employee": "EMP-[0-9]{6}", "any": "Q[^ ]{1,20}"}


def found(text: str, detector: Detector = DETECTOR) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in detector.find(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Write to bob.o'neil+x@mail.example.co.uk.", Kind.EMAIL, "bob.o'neil+x@mail.example.co.uk"),
        ("'Jörg@müller.de'", Kind.EMAIL, "Jörg@müller.de"),
        ("имя@почта.рф,", Kind.EMAIL, "имя@почта.рф"),
        ("a@b.xn--p1ai", Kind.EMAIL, "a@b.xn--p1ai"),
        ("bob＠example．com", Kind.EMAIL, "bob＠example．com"),
        ("bob\u200b@example.com", Kind.EMAIL, "bob\u200b@example.com"),
        ('{"text": "line\\nbob@x.com"}', Kind.EMAIL, "bob@x.com"),
        ("4111 1111 1111 1111 123", Kind.CARD, "4111 1111 1111 1111"),
        ("12 4111-1111-1111-1111", Kind.CARD, "4111-1111-1111-1111"),
        ("amex 3782 822463 10005", Kind.CARD, "3782 822463 10005"),
        ("４１１１１１１１１１１１１１１１", Kind.CARD, "４１１１１１１１１１１１１１１１"),
        ("٤١١١١١١١١١١١١١١١", Kind.CARD, "٤١١١١١١١١١١١١١١١"),
        ("1000 2000 3000 4000 4111 1111 1111 1111", Kind.CARD, "4111 1111 1111 1111"),
        ("IBAN DE89 3704 0044 0532 0130 00 and", Kind.IBAN, "DE89 3704 0044 0532 0130 00"),
        ("gb82west12345698765432", Kind.IBAN, "gb82west12345698765432"),
        ("NO93-8601-1117-947", Kind.IBAN, "NO93-8601-1117-947"),
        ("at 10.1.2.3:80", Kind.IP, "10.1.2.3"),
        ("from 8.8.8.8.", Kind.IP, "8.8.8.8"),
        ("[2001:db8::1]:443", Kind.IP, "2001:db8::1"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334", Kind.IP, "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
        ("fe80::1%eth0", Kind.IP, "fe80::1"),
        ("+49 (0)30 123456-78 now", Kind.PHONE, "+49 (0)30 123456-78"),
        ("+1 212 555 0143 2024", Kind.PHONE, "+1 212 555 0143"),
        ("+8613800138000", Kind.PHONE, "+8613800138000"),
        ("0049 151 23456789", Kind.PHONE, "0049 151 23456789"),
        ("(212) 555-0143", Kind.PHONE, "(212) 555-0143"),
        ("06 12 34 56 78", Kind.PHONE, "06 12 34 56 78"),
        ("020 7946 0958", Kind.PHONE, "020 7946 0958"),
        ("Handynummer ist 015112345678", Kind.PHONE, "015112345678"),
        ("call me at 5551234", Kind.PHONE, "5551234"),
        ("key AKIAIOSFODNN7EXAMPLE", Kind.API_KEY, "AKIAIOSFODNN7EXAMPLE"),
        ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", Kind.API_KEY, "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
        ("Authorization: Bearer abc123def456ghi789jklm0", Kind.API_KEY, "abc123def456ghi789jklm0"),
        ('"api_key": "9f8e7d6c5b4a39281706f5e4d3c2b1a0"', Kind.API_KEY, "9f8e7d6c5b4a39281706f5e4d3c2b1a0"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_Xg", Kind.API_KEY, None),
    ],
)
def test_found(text: str, kind: Kind, value: str | None) -> None:
    assert found(text) == [(kind, text if value is None else value)]


def test_a_key_of_our_own() -> None:
    key = generate().text
    assert found(f"I use {key}.") == [(Kind.API_KEY, key)]


@pytest.mark.parametrize("text", NEGATIVES)
def test_not_found(text: str) -> None:
    assert found(text) == []


def test_precision_and_recall_on_a_generated_corpus() -> None:
    """Values as people write them, in sentences, beside numbers that are none."""
    rng = random.Random(7)
    cases = [(kind, value, line) for _ in range(300) for kind, value, line in positives(rng)]
    hits: Counter[str] = Counter()
    false: Counter[str] = Counter()
    for kind, value, line in cases:
        for one in found(line):
            if one == (kind, value):
                hits[kind] += 1
            else:
                false[one[0]] += 1
    total = Counter(kind for kind, _, _ in cases)
    assert {kind: hits[kind] / total[kind] for kind in Kind if hits[kind] / total[kind] < 0.97} == {}
    assert sum(false.values()) <= 0.01 * len(cases), false


@pytest.mark.shared
def test_few_false_alarms_in_public_text(data: Path) -> None:
    """Nobody's data is in them: a book, questions, and sums from schools."""
    names = ("alice.txt", "gsm8k_train.jsonl", "mtbench_vicuna_prompts.jsonl", "self_instruct_seeds.jsonl")
    texts = [(data / "corpora" / name).read_text(encoding="utf-8") for name in names]
    alarms = [one for text in texts for one in found(text)]
    assert len(alarms) <= sum(map(len, texts)) / 200_000, alarms


def test_configured_patterns_come_first() -> None:
    detector = Detector([Kind.EMAIL], OWN)
    assert found("EMP-123456 and Q\ud800a@b.cd or c@d.ef", detector) == [
        ("employee", "EMP-123456"),
        ("any", "Q\ud800a@b.cd"),
        ("email", "c@d.ef"),
    ]
    assert found("4111 1111 1111 1111", detector) == []
    with pytest.raises(PatternError):
        Detector([], {"bad": "("})


def test_what_looks_like_a_placeholder_is_found() -> None:
    detector = Detector([Kind.EMAIL], OWN)
    assert found("<EMAIL_1> <EMPLOYEE_22> <TEXT_3> <CARD_1> <EMAIL_> <email_1>", detector) == [
        ("text", "<EMAIL_1>"),
        ("text", "<EMPLOYEE_22>"),
        ("text", "<TEXT_3>"),
    ]
    assert found("Q<EMAIL_1>", detector)[-1] == ("text", "<EMAIL_1>")


@given(st.text("<EMAIL_12>ab@.c +4915 Qü\ud800\n", max_size=80))
def test_what_is_found_lies_in_the_text_side_by_side(text: str) -> None:
    ends = 0
    for one in Detector(patterns=OWN).find(text):
        assert ends <= one.start < one.end <= len(text)
        ends = one.end


HOSTILE = (
    "1111 ", "4111-", "4", "DE11 ", "DE11", "a@a.", "a@a.aa ", "aaaa", ":", "abc:1:", "1.1.1.", "1.1.1.1 ", "sk-",
    "tok", "sk-aaaaaaaaaaaaaaaaa1b ", "token=", "+1", "01 ", "01.01.2024 ", "tel ", "tel 1234567 ", "(", "+ 1 ",
    "ä٣", "@", "<EMAIL_", "<EMAIL_1>", "eyJ-", "token sk-", "00", "0 ", "bearer bearer", "\\n", "a.", "a-a@a-",
)  # fmt: skip


class _Counted:
    """A look whose steps are counted: characters that were gone over in searching, and in checking what was found."""

    def __init__(self, look: Any) -> None:
        self._look = look
        self.kind, self.run = look.kind, look.run
        self.pattern = self
        self.steps = self.num_checks = 0

    def search(self, shape: bytes, position: int) -> Any:
        match = self._look.pattern.search(shape, position)
        self.steps += (match.span()[1] if match else len(shape)) - position
        return match

    def check(self, shape: bytes, start: int, end: int) -> Any:
        self.num_checks += 1
        self.steps += end - start + self.run.match(shape, start).end() - start
        return self._look.check(shape, start, end)


@pytest.mark.parametrize("part", HOSTILE)
def test_work_grows_as_the_text_does(part: str) -> None:
    """Twice the text, twice the work, and no more than so many steps a character for each of what is looked for."""

    def work(length: int) -> int:
        shape, looks = module.shape_of(part * (length // len(part))), [_Counted(look) for look in DETECTOR._looks]
        for look in looks:
            list(module._places(shape, cast(Any, look)))
        return max(look.steps for look in looks)

    small, large = work(10_000), work(20_000)
    assert large <= 2 * small + 1000
    assert large <= 40 * 20_000


NEAR_MISSES = (
    "a@a ", "a@", "漢@", "a@a.1 ", "1.1.1.256 ", "1.1.1.", "12:30:11 ", "abcd:1:g ", "1 ::", "AB12 ", "1234 ", "012 ",
    "01.02.2003 ", "212-555-0143-",
)  # fmt: skip


@pytest.mark.parametrize("part", NEAR_MISSES)
def test_near_misses_are_not_checked_one_by_one(part: str) -> None:
    looks = [_Counted(look) for look in DETECTOR._looks]
    for look in looks:
        list(module._places(module.shape_of(part * 500), cast(Any, look)))
    assert max(look.num_checks for look in looks) <= 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("from:2001:db8::1", "2001:db8::1"),
        ("1:2:3 2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6"),
        ("fd00:1:2:3:4:5:192.0.2.1", "fd00:1:2:3:4:5:192.0.2.1"),
        ("std::dec::1 12:30:11 abc::xyz", None),
        ("256.1.1.1 1.2.3.4.5 v1.2.3.4 127.0.0.1 0.0.0.0 255.255.255.0 01.2.3.4", None),
    ],
)
def test_addresses(text: str, value: str | None) -> None:
    assert found(text) == ([] if value is None else [(Kind.IP, value)])
