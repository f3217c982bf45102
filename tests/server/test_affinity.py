"""Which replica has had the beginning of a prompt."""

from __future__ import annotations

from server.affinity import BLOCK, MAX_BLOCKS, MAX_KEYS, Affinity, prefix_keys

FIRST = list(range(3 * BLOCK + 5))
TURN = FIRST + [7] * 100  # the same conversation, later


def test_a_longer_prompt_has_the_keys_of_its_beginning() -> None:
    assert len(prefix_keys(FIRST, b"a")) == 3
    assert prefix_keys(TURN, b"a")[:3] == prefix_keys(FIRST, b"a")
    assert prefix_keys(FIRST[: BLOCK - 1], b"a") == []
    assert len(prefix_keys([1] * (BLOCK * MAX_BLOCKS * 3), b"a")) == MAX_BLOCKS


def test_tenants_have_none_in_common() -> None:
    assert not set(prefix_keys(FIRST, b"a")) & set(prefix_keys(FIRST, b"b"))


def test_the_longest_beginning_says_where() -> None:
    affinity = Affinity()
    assert affinity.find(prefix_keys(TURN, b"a")) == (None, 0)
    affinity.note(prefix_keys(FIRST[: 2 * BLOCK], b"a"), 0)
    affinity.note(prefix_keys(FIRST[:BLOCK] + [9] * BLOCK, b"a"), 1)
    assert affinity.find(prefix_keys(TURN, b"a")) == (0, 2 * BLOCK)
    assert affinity.find(prefix_keys(FIRST[:BLOCK] + [8] * BLOCK, b"a")) == (1, BLOCK)
    assert affinity.find(prefix_keys(TURN, b"b")) == (None, 0)


def test_it_forgets_what_was_not_used_for_longest() -> None:
    affinity = Affinity()
    affinity.note([b"old"], 0)
    affinity.note([str(number).encode() for number in range(MAX_KEYS)], 1)
    assert affinity.find([b"old"]) == (None, 0)
    assert affinity.find([b"0"]) == (1, BLOCK)
