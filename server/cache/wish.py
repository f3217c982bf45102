"""What clients ask of the response cache, and what they hear of it."""

from __future__ import annotations

from enum import StrEnum

from server.errors import InvalidRequest, UnsupportedParameter

HEADER = "x-penstock-cache"


class Wish(StrEnum):
    """What a client asks for in `x-penstock-cache`."""

    USE = "use"  # a recorded answer will do, and this one may be recorded, however it is sampled
    REFRESH = "refresh"  # computed anew, and recorded in the place of what was there
    NO_STORE = "no-store"  # neither replayed nor recorded


class Result(StrEnum):
    """What an answer's `x-penstock-cache` says."""

    HIT = "hit"  # recorded earlier
    SHARED = "shared"  # another request's computation, which was under way
    MISS = "miss"  # computed for this request


def wish_of(header: str | None, is_on: bool) -> Wish | None:
    """Raises InvalidRequest for a value that means nothing, or that a server without a cache can't fulfil."""
    if header is None:
        return None
    if header not in list(Wish):
        raise InvalidRequest(f"'{HEADER}': expected one of {', '.join(Wish)}.", param=HEADER)
    if not is_on and header != Wish.NO_STORE:
        raise UnsupportedParameter(HEADER, f"Unsupported header: '{HEADER}'. This server has no response cache.")
    return Wish(header)


def cache_header(result: Result | None) -> dict[str, str]:
    """None: there is no cache."""
    return {} if result is None else {HEADER: result}
