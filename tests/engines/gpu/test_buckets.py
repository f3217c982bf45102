from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.torch.gpu.buckets import GraphBuckets
from engines.torch.gpu.slots import SlotTable


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 79, 80, 100, 256, 1000])
def test_every_batch_has_a_bucket(most: int) -> None:
    buckets = GraphBuckets.up_to(most)
    buckets.check_integrity()
    assert buckets.sizes[-1] == most
    assert buckets.largest_first[0] == most


def test_the_edges_of_buckets() -> None:
    buckets = GraphBuckets.up_to(96)
    assert buckets.sizes == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96)
    found = [buckets.size_for(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64, 65, 80, 81, 96, 97)]
    assert found == [1, 2, 4, 4, 8, 8, 16, 16, 24, 64, 80, 80, 96, 96, None]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_slots_belong_to_one_sequence_each(uses: list[tuple[int, bool]]) -> None:
    """Sequences come, go, and push out those longest without use."""
    slots = SlotTable(4)
    recent: list[int] = []
    for sequence_id, leaves in uses:
        if leaves:
            slots.release(sequence_id)
            assert slots.get(sequence_id) is None
        elif slots.get(sequence_id) is not None:
            slots.touch(sequence_id)
        else:
            keep = [other for other in recent[-3:] if other != sequence_id]
            before = {other: slots.get(other) for other in keep}
            slots.acquire(sequence_id, keep)
            assert {other: slots.get(other) for other in keep} == before
        recent.append(sequence_id)
        slots.check_integrity()
