"""The embedded store against a model of it: what is there, for how long, and within which room."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from server.cache.memory import OVERHEAD, MemoryStore
from tests.fakes import FakeClock

TTL = 10.0
ROOM = 4 * (OVERHEAD + 100)


def store_with(clock: FakeClock, changes: list[tuple[int, int]] | None = None) -> MemoryStore:
    def changed(num_bytes: int, num_evicted: int) -> None:
        if changes is not None:
            changes.append((num_bytes, num_evicted))

    return MemoryStore(ROOM, TTL, changed, clock)


async def test_what_is_put_is_there_until_its_time_is_over() -> None:
    clock = FakeClock()
    store = store_with(clock)
    await store.put(b"k", b"data")
    clock.now += TTL - 0.1
    assert await store.get(b"k") == b"data"
    clock.now += 0.1
    assert await store.get(b"k") is None
    assert store.num_bytes == 0


async def test_the_one_used_least_recently_goes_first() -> None:
    changes: list[tuple[int, int]] = []
    store = store_with(FakeClock(), changes)
    for name in (b"a", b"b", b"c", b"d"):
        await store.put(name, bytes(100))
    await store.get(b"a")
    await store.put(b"e", bytes(150))
    kept = [await store.get(name) is not None for name in (b"a", b"b", b"c", b"d", b"e")]
    assert kept == [True, False, False, True, True]
    assert changes[-2:] == [(ROOM, 0), (store.num_bytes, 2)]


async def test_what_is_larger_than_the_store_is_not_taken() -> None:
    store = store_with(FakeClock())
    await store.put(b"k", b"small")
    await store.put(b"k", bytes(ROOM))
    assert await store.get(b"k") is None, "an older answer would be a wrong one"
    store.check_integrity()


@given(
    st.lists(st.tuples(st.sampled_from(["put", "get", "wait"]), st.integers(0, 6), st.integers(0, 500)), max_size=60)
)
async def test_as_a_list_in_order_of_use(steps: list[tuple[str, int, int]]) -> None:
    clock = FakeClock()
    store, model = store_with(clock), OrderedDict[bytes, tuple[bytes, float]]()
    for what, number, size in steps:
        key = bytes([number])
        if what == "wait":
            clock.now += number
        elif what == "put":
            await store.put(key, bytes(size))
            model.pop(key, None)
            model[key] = (bytes(size), clock.now + TTL)
            while sum(OVERHEAD + len(data) for data, _ in model.values()) > ROOM:
                model.popitem(last=False)
        else:
            data, expires = model.get(key, (None, 0.0))
            if data is not None and clock.now >= expires:
                del model[key]
                data = None
            elif data is not None:
                model.move_to_end(key)
            assert await store.get(key) == data
        store.check_integrity()
