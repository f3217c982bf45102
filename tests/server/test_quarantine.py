"""Which requests are taken for what stops engines."""

from __future__ import annotations

from dataclasses import replace

from server.quarantine import MAX_REMEMBERED, REMEMBERED, Quarantine
from tests.server.house import prepared

PROMPT = prepared("")


def test_it_is_known_again_for_a_time() -> None:
    quarantine = Quarantine()
    quarantine.suspect("a", PROMPT, 0.0)
    quarantine.refuse("a", PROMPT, 0.0)
    for now, known in ((1.0, True), (REMEMBERED + 1, False)):
        assert quarantine.is_suspect("a", prepared(""), now) is known
        assert quarantine.is_refused("a", prepared(""), now) is known


def test_only_the_same_of_the_same_account_is_meant() -> None:
    quarantine = Quarantine()
    quarantine.refuse("a", PROMPT, 0.0)
    assert not quarantine.is_refused("b", PROMPT, 1.0)
    assert not quarantine.is_refused("a", prepared("", temperature=0.0), 1.0)
    assert not quarantine.is_refused("a", replace(PROMPT, token_ids=[1]), 1.0)
    assert not quarantine.is_refused("a", replace(PROMPT, text="other"), 1.0)


def test_a_suspect_that_got_on_is_none_any_more() -> None:
    quarantine = Quarantine()
    quarantine.suspect("a", PROMPT, 0.0)
    quarantine.acquit("a", PROMPT)
    assert not quarantine.is_suspect("a", PROMPT, 1.0)


def test_it_remembers_so_many_and_no_more() -> None:
    quarantine = Quarantine()
    for number in range(MAX_REMEMBERED + 1):
        quarantine.suspect("a", replace(PROMPT, token_ids=[number]), 0.0)
    assert not quarantine.is_suspect("a", replace(PROMPT, token_ids=[0]), 1.0)
    assert quarantine.is_suspect("a", replace(PROMPT, token_ids=[MAX_REMEMBERED]), 1.0)
