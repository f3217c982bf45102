"""How the limits of a whole account stand, with all its keys: for administrators."""

from __future__ import annotations

from quota.ledger import Ledger
from quota.standing import Standing, standings
from server.plans import PlanBook, key_limits
from server.store import Store
from server.store.records import Account


async def account_standings(account: Account, plans: PlanBook, store: Store, ledger: Ledger) -> list[Standing]:
    """Raises LedgerUnavailable, and what the database raises."""
    plan = plans.effective(account.plan, account.overrides)
    keys = {key.id: key_limits(key.limits) for key in await store.keys.valid(account.id)}
    return standings(plan, keys, await ledger.usage(account.id))
