"""Which sequences of a plan run together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engines.onnx.batches import BatchRules
from engines.onnx.probe import Abilities
from engines.steps import ScheduledSequence


def row(sequence_id: int, start: int, num_tokens: int = 1) -> ScheduledSequence:
    return ScheduledSequence(sequence_id, start, num_tokens, True, [])


def split(rules: BatchRules, *groups: list[ScheduledSequence]) -> list[list[int]]:
    return [[sequence.sequence_id for sequence in batch] for batch in rules.split(list(groups))]


ALL = Abilities(pads=True, continues_in_chunks=True)


def test_groups_of_decodes_are_joined_while_padding_is_cheaper_than_a_run() -> None:
    groups = [row(0, 100), row(1, 98)], [row(2, 90)], [row(3, 10)]
    assert split(BatchRules(ALL, False, free_padding=10), *groups) == [[0, 1, 2], [3]]
    assert split(BatchRules(ALL, False, free_padding=9), *groups) == [[0, 1], [2], [3]]
    assert split(BatchRules(ALL, False, free_padding=90), *reversed(groups)) == [[0, 1, 2, 3]]


def test_a_decode_is_never_padded_to_a_chunk() -> None:
    assert split(BatchRules(ALL, False, 1000), [row(0, 50), row(1, 40, 8)], [row(2, 0, 30)]) == [[0], [1], [2]]


def test_a_merged_decoder_runs_prompts_apart() -> None:
    mixed = [row(0, 0, 30), row(1, 16, 30), row(2, 0, 1)]
    assert split(BatchRules(ALL, False, 0), mixed) == [[0, 1, 2]]
    assert split(BatchRules(ALL, True, 0), mixed) == [[0, 2], [1]]


def test_without_padding_all_are_alike() -> None:
    rules = BatchRules(Abilities(pads=False, continues_in_chunks=True), False, 1000)
    assert split(rules, [row(0, 5), row(1, 4), row(2, 5)], [row(3, 0, 4), row(4, 0, 5)]) == [[0, 2], [1], [3], [4]]


def test_token_by_token_only_the_last_is_sampled() -> None:
    rules = BatchRules(Abilities(pads=True, continues_in_chunks=False), False, 0)
    batches = rules.split([[row(0, 7, 3), row(1, 0, 9)]])
    assert [[(s.sequence_id, s.start, s.num_tokens, s.samples) for s in batch] for batch in batches] == [
        [(1, 0, 9, True)],
        [(0, 7, 1, False)],
        [(0, 8, 1, False)],
        [(0, 9, 1, True)],
    ]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), min_size=1, max_size=6), max_size=6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 200),
)
def test_every_token_is_computed_once(
    shapes: list[list[tuple[int, int]]], pads: bool, chunks: bool, merged: bool, free_padding: int
) -> None:
    ids = iter(range(1000))
    groups = [[row(next(ids), start, count) for start, count in group] for group in shapes]
    batches = BatchRules(Abilities(pads, chunks), merged, free_padding).split(groups)
    computed = [(s.sequence_id, s.start + i) for batch in batches for s in batch for i in range(s.num_tokens)]
    wanted = [(s.sequence_id, s.start + i) for group in groups for s in group for i in range(s.num_tokens)]
    assert sorted(computed) == sorted(wanted)
    assert all(first < second for first, second in pairwise(computed) if first[0] == second[0])
