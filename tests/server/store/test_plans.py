"""Plans as they are kept, over each database."""

from server.store import Store
from server.store.records import utc_now

GOLD = {"account": {"rpm": 5, "tpm": 100, "shadow": ["tpm"]}, "models": {"big@1": {"tpm": 10}}}


async def test_a_plan_is_put_read_replaced_and_deleted(store: Store) -> None:
    began = utc_now()
    made = await store.plans.put("gold", GOLD)
    assert (made.name, made.tables) == ("gold", GOLD)
    assert began <= made.updated_at <= utc_now()
    assert await store.plans.get("gold") == made
    changed = await store.plans.put("gold", {})
    assert changed.tables == {}
    assert changed.updated_at > made.updated_at
    free = await store.plans.put("free", {"key": {"rpm": 1}})
    assert await store.plans.all() == [free, changed]
    assert await store.plans.delete("gold") is True
    assert await store.plans.delete("gold") is False
    assert await store.plans.get("gold") is None
    assert await store.plans.all() == [free]


async def test_accounts_of_a_plan_are_counted(store: Store) -> None:
    for name, plan in (("a", "gold"), ("b", "gold"), ("c", "default")):
        await store.accounts.create(name, plan)
    assert await store.accounts.num_with_plan("gold") == 2
    assert await store.accounts.num_with_plan("none") == 0
