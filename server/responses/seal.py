"""What clients keep for us between requests: opaque to them, and only ours comes back.

Signed, not secret: it holds nothing that its owner has not sent or been sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib
from dataclasses import dataclass

from server.errors import InvalidRequest

_MAC_SIZE = 16


@dataclass(slots=True, frozen=True)
class Seal:
    """One account's. `key` is the server's, the same on all of its gateways."""

    key: bytes
    account_id: str

    def close(self, text: str) -> str:
        packed = zlib.compress(text.encode())
        return base64.urlsafe_b64encode(self._mac(packed) + packed).decode()

    def open(self, sealed: str, param: str) -> str:
        """Raises InvalidRequest for what was not sealed here, for this account."""
        try:
            raw = base64.urlsafe_b64decode(sealed.encode())
        except (binascii.Error, ValueError):
            raw = b""
        mac, packed = raw[:_MAC_SIZE], raw[_MAC_SIZE:]
        if not hmac.compare_digest(mac, self._mac(packed)):
            message = "The 'encrypted_content' of an item was not made by this server, or not for this account."
            raise InvalidRequest(message, param=param, code="invalid_encrypted_content")
        return zlib.decompress(packed).decode()

    def _mac(self, packed: bytes) -> bytes:
        own = hmac.digest(self.key, self.account_id.encode(), hashlib.sha256)
        return hmac.digest(own, packed, hashlib.sha256)[:_MAC_SIZE]


def seal_key(pepper: bytes) -> bytes:
    return hmac.digest(pepper, b"sealed items of responses", hashlib.sha256)
