import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.buckets import Cells, count_cells, fill_batch, group_by_length
from batching.scheduler import Scheduler, SchedulerConfig
from engines.steps import ScheduledSequence, StepResult
from loadtest.workloads import Draw, Drawn, RequestSize, WorkloadName, take
from tests.fakes import make_info, make_request

decodes = st.tuples(st.integers(0, 5000), st.just(1))
chunks = st.tuples(st.integers(0, 5000), st.integers(2, 600))


def rows(shapes: list[tuple[int, int]]) -> list[ScheduledSequence]:
    return [ScheduledSequence(i, start, count, True, []) for i, (start, count) in enumerate(shapes)]


def decode_rows(lengths: list[int]) -> list[ScheduledSequence]:
    return rows([(length - 1, 1) for length in lengths])


@given(
    st.lists(st.one_of(decodes, decodes, chunks), max_size=80).map(rows), st.sampled_from([0.0, 0.05, 0.1, 0.5, 5.0])
)
def test_a_partition_within_the_bound(scheduled, max_waste):
    grouped = group_by_length(scheduled, max_waste)
    placed = [row.sequence_id for group in grouped.groups for row in group]
    assert sorted(placed) == [row.sequence_id for row in scheduled], "lost or doubled"
    assert all(grouped.groups), "an empty group"
    assert grouped.cells.waste <= max_waste + 1e-12
    counted = [count_cells(group) for group in grouped.groups]
    assert grouped.cells == Cells(sum(c.real for c in counted), sum(c.padding for c in counted))


@given(st.lists(st.one_of(decodes, chunks), min_size=1, max_size=80).map(rows))
def test_decodes_and_chunks_stay_apart(scheduled):
    for group in group_by_length(scheduled).groups:
        assert len({row.num_tokens == 1 for row in group}) == 1


@given(st.lists(st.one_of(decodes, chunks), min_size=1, max_size=40).map(rows))
def test_without_slack_only_equal_shapes_share(scheduled):
    for group in group_by_length(scheduled, max_waste=0.0).groups:
        assert len({(row.num_tokens, row.start) for row in group}) == 1


@given(decodes | chunks, st.integers(1, 100))
def test_equal_lengths_are_one_group(shape, count):
    assert len(group_by_length(rows([shape] * count)).groups) == 1


@pytest.mark.parametrize("seed", range(10))
def test_uniform_lengths_need_few_groups(seed):
    """The least possible is 6 to 8; one pass comes near it."""
    rng = random.Random(seed)
    for count in (64, 256):
        lengths = [rng.randint(10, 1000) for _ in range(count)]
        assert len(group_by_length(decode_rows(lengths)).groups) <= 10


def test_the_slack_of_long_sequences_pays_for_short_ones():
    grouped = group_by_length(decode_rows([10_000, 10, 20, 30, 40]))
    assert [[row.context_len for row in group] for group in grouped.groups] == [[10_000], [40, 30, 20, 10]]


def test_chunks_of_a_prompt_are_padded_to_queries_and_keys():
    group = rows([(0, 10), (90, 10), (50, 5)])
    assert count_cells(group) == Cells(real=100 + 1000 + 275, padding=3 * 10 * 100 - 1375)


def test_the_longest_context_of_a_group_need_not_be_its_first():
    scheduled = rows([(0, 100), (900, 90), (0, 80)])
    grouped = group_by_length(scheduled, max_waste=5.0)
    assert grouped.groups == [scheduled]
    assert grouped.cells == count_cells(scheduled)


@given(st.lists(st.one_of(decodes, chunks), max_size=40))
def test_what_one_batch_of_all_would_waste_is_told(shapes):
    scheduled = rows(shapes)
    grouped = group_by_length(scheduled)
    kinds = [[r for r in scheduled if r.num_tokens > 1], [r for r in scheduled if r.num_tokens == 1]]
    assert grouped.ungrouped == sum((count_cells(kind) for kind in kinds if kind), Cells())
    assert grouped.ungrouped.padding >= grouped.cells.padding


def test_no_sequences_no_groups():
    grouped = group_by_length([])
    assert (grouped.groups, grouped.cells.waste) == ([], 0.0)


def test_a_batch_is_filled_with_what_is_about_as_long() -> None:
    assert fill_batch(2, [10, 99, 100, 104, 300, 100], size=8) == [2, 5, 1, 3]
    assert fill_batch(0, [100] * 9, size=4) == [0, 1, 2, 3], "of equals the earliest"
    assert fill_batch(0, [100, 101], size=8, max_waste=0) == [0]
    assert fill_batch(1, [7, 5], size=1) == [1]


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40), size=st.integers(1, 12), data=st.data())
def test_padding_of_a_batch_stays_within_its_bound(lengths: list[int], size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(lengths) - 1))
    batch = fill_batch(first, lengths, size)
    assert batch[0] == first
    assert len(set(batch)) == len(batch) <= size
    members = [lengths[index] for index in batch]
    assert max(members) * len(members) <= 1.1 * sum(members) + 1e-6


def test_padding_on_a_chat_like_mix_against_one_batch_of_all() -> None:
    """What `penstock bench` reports, of 32 requests at a time through the scheduler."""
    info = make_info(max_model_len=4096, max_num_seqs=32, block_size=16, num_blocks=8192, token_budget=256)
    scheduler = Scheduler(info, SchedulerConfig())
    workload = Drawn(WorkloadName.CHAT, RequestSize(1024, 1024), as_token_ids=True)
    planned = list(enumerate(take(workload, 96, Draw(seed=1))))
    while planned or scheduler.has_work:
        while planned and scheduler.snapshot().running + len(scheduler.queue) < 32:
            number, request = planned.pop()
            assert not isinstance(request.prompt, str)
            scheduler.add(make_request(f"r{number}", request.prompt, max_tokens=request.max_tokens), 0.0)
        if (plan := scheduler.schedule(0.0)) is not None:
            tokens = {row.sequence_id: 1 for group in plan.groups for row in group if row.samples}
            scheduler.update(plan, StepResult(tokens))
    stats = scheduler.stats
    assert stats.padding_cells <= 0.10 * stats.attention_cells
    assert stats.ungrouped_padding_cells > 0.8 * stats.attention_cells
