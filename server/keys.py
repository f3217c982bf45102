"""The text of a key: `sk-pen-<id>-<secret>-<crc32>`, made, recognised and digested. No database here."""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

PREFIX = "sk-pen"
ID_LENGTH = 8
SECRET_BYTES = 32
PRESET_FORM = "expected 16 to 512 characters, without control characters and without a space at either end"

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 43  # the fewest digits of base 62 that hold 2**256 - 1
_FORM = re.compile(
    rf"(?P<body>{PREFIX}-(?P<id>[0-9A-Za-z]{{{ID_LENGTH}}})-[0-9A-Za-z]{{{_SECRET_LENGTH}}})-(?P<crc>[0-9a-f]{{8}})"
)
# What an HTTP header can carry: no control characters (nor halves of surrogate pairs, which are no text).
_CARRIED = re.compile(r"(?! )[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{16,512}(?<! )")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that nobody has seen. `text` is shown once and never stored."""

    id: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """What a text of our form says about itself. Proves nothing: the digest does."""

    id: str


def generate() -> NewKey:
    """A new key from 256 random bits."""
    key_id = new_id()
    body = f"{PREFIX}-{key_id}-{_base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)))}"
    return NewKey(key_id, f"{body}-{_checksum(body)}")


def new_id() -> str:
    """A random public id, as keys carry it."""
    return "".join(secrets.choice(_BASE62) for _ in range(ID_LENGTH))


def parse(text: str) -> ParsedKey | None:
    """The id of a text of our form with the right checksum, else None. The checksum only tells our keys from all
    others: those are looked up by their digest."""
    match = _FORM.fullmatch(text)
    if match is None or match["crc"] != _checksum(match["body"]):
        return None
    return ParsedKey(match["id"])


def may_be_key(text: str) -> bool:
    """Whether a text may be a key: one of our form, or one that the operator chose, as `PRESET_FORM` says."""
    return _CARRIED.fullmatch(text) is not None


def digest(pepper: bytes, text: str) -> bytes:
    """HMAC-SHA256, 32 bytes: what is stored of a key. A slow hash would add nothing to 256 random bits."""
    return hmac.digest(pepper, text.encode("utf-8", "surrogatepass"), hashlib.sha256)


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode('ascii')):08x}"


def _base62(number: int) -> str:
    digits = []
    for _ in range(_SECRET_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
