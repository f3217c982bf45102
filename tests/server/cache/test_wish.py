"""What a client may ask of the cache, by name."""

from __future__ import annotations

import pytest

from server.cache.wish import HEADER, Wish, wish_of
from server.errors import InvalidRequest, UnsupportedParameter


def test_the_values() -> None:
    assert wish_of(None, True) is None
    assert [wish_of(text, True) for text in ("use", "refresh", "no-store")] == [Wish.USE, Wish.REFRESH, Wish.NO_STORE]


@pytest.mark.parametrize("text", ["", "USE", "max-age=0", "use, refresh"])
@pytest.mark.parametrize("is_on", [True, False])
def test_another_value_is_refused_by_name(text: str, is_on: bool) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wish_of(text, is_on)
    assert caught.value.param == HEADER


def test_a_server_without_a_cache_does_not_pretend() -> None:
    assert wish_of("no-store", False) is Wish.NO_STORE
    for text in ("use", "refresh"):
        with pytest.raises(UnsupportedParameter):
            wish_of(text, False)
