"""What a ledger's keys hold, in one value: whether anything was written."""

from __future__ import annotations

from quota.redis import RedisLedger


async def keys_of(ledger: RedisLedger) -> list[bytes]:
    found: list[bytes] = await ledger._link.ask("KEYS", f"{ledger._prefix}:*")
    return found


async def digest(ledger: RedisLedger) -> bytes:
    keys = sorted(await keys_of(ledger))
    return b" ".join([*keys, *await ledger._link.ask("DEBUG", "DIGEST-VALUE", *keys)])
