"""Sampling: supports, distributions, penalties against a naive reference, and indifference to neighbours."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.sampling import Sampler
from engines.types import SamplingParams

VOCAB = 50
Logits = NDArray[np.float32]


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 0, scale: float = 2.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * scale).astype(np.float32)


def draw(logits: Logits, count: int, prompt: tuple[int, ...] = (), **params: Any) -> list[int]:
    """`count` tokens of one sequence whose logits never change."""
    sampler = Sampler(logits.shape[-1])
    sampler.add(0, prompt, SamplingParams(max_tokens=count, **params))
    return [sampler.sample([0], logits.reshape(1, -1).copy()).token_ids[0] for _ in range(count)]


def reference(logits: Logits, temperature: float, top_k: int, top_p: float, min_p: float) -> NDArray[np.float64]:
    """The distribution, filter after filter over the sorted vocabulary."""
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    order = np.argsort(-probabilities, kind="stable")
    kept = list(order[: top_k or None])
    total = probabilities[kept].sum()
    before = np.concatenate([[0], np.cumsum(probabilities[kept])[:-1]]) / total
    kept = [token for i, token in enumerate(kept) if i == 0 or (before[i] < top_p)]
    kept = [token for token in kept if probabilities[token] >= min_p * probabilities.max()]
    result = np.zeros(len(logits))
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 0.7},
    {"top_p": 0.0},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 8, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.1, "temperature": 1.3},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_distribution(filters: dict[str, Any]) -> None:
    """Support exactly as the reference; frequencies within chi-square's 1e-6 tail (fixed seed)."""
    logits = random_logits(1)[0]
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    expected = reference(logits, **settings)
    count = 8000
    observed = np.bincount(draw(logits, count, seed=11, **settings), minlength=VOCAB)
    assert not observed[expected == 0].any()
    likely = expected * count >= 5
    chi_square = ((observed - expected * count)[likely] ** 2 / (expected * count)[likely]).sum()
    degrees = max(1, likely.sum())
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees) + 10


@pytest.mark.parametrize("vocab", [700, 5000])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.95}, {"top_k": 600}, {"min_p": 0.001}], ids=str)
def test_support_of_a_large_vocabulary(vocab: int, filters: dict[str, Any]) -> None:
    """More tokens than one block of the running sums: the frequency of each half of the support is right."""
    logits = random_logits(1, vocab, scale=1.0)[0]
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    expected = reference(logits, **settings)
    tokens = np.array(draw(logits, 3000, seed=5, **settings))
    assert (expected[tokens] > 0).all()
    for part in np.array_split(np.arange(vocab), 4):
        assert abs(np.isin(tokens, part).mean() - expected[part].sum()) < 0.05


def test_equally_likely_tokens_keep_the_lower_ids() -> None:
    assert set(draw(np.zeros(VOCAB, dtype=np.float32), 300, top_k=3, seed=1)) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = random_logits(1)[0]
    assert set(draw(logits, 20, temperature=temperature, seed=1)) == {int(logits.argmax())}


def test_penalties_equal_a_naive_reference() -> None:
    params = {"temperature": 0.0, "presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.4}
    prompt, logits = (1, 2, 2, 9), random_logits(1)[0]
    generated: list[int] = []
    for _ in range(40):
        row = logits.astype(np.float64)
        for token in {*prompt, *generated}:
            row[token] = row[token] / 1.4 if row[token] > 0 else row[token] * 1.4
        for token, times in Counter(generated).items():
            row[token] -= 0.7 + 0.3 * times
        generated.append(int(row.argmax()))
    assert draw(logits, 40, prompt, **params) == generated
    assert len(set(generated)) > 5


def test_many_distinct_tokens_are_counted() -> None:
    """More than the counts' first capacity: a strong presence penalty visits each token once."""
    tokens = draw(random_logits(1, 300)[0], 300, temperature=0.0, presence_penalty=1000.0)
    assert sorted(tokens) == list(range(300))


def test_logit_bias() -> None:
    logits = random_logits(1)[0]
    best = int(logits.argmax())
    assert set(draw(logits, 50, logit_bias={7: 100.0}, seed=1)) == {7}
    assert best not in draw(logits, 300, logit_bias={best: -100.0}, seed=1)
    assert draw(logits, 1, logit_bias={VOCAB: 100.0, -1: 100.0}, temperature=0.0) == [best]


def test_min_tokens_bans_stop_tokens_until_then() -> None:
    logits = random_logits(1)[0]
    best = int(logits.argmax())
    tokens = draw(logits, 6, temperature=0.0, min_tokens=3, stop_token_ids=frozenset({best, VOCAB + 5}))
    assert best not in tokens[:3]
    assert tokens[3:] == [best] * 3


def mixed_params(row: int) -> SamplingParams:
    choices: list[dict[str, Any]] = [
        *FILTERS,
        {"temperature": 0.0},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.5},
        {"temperature": 0.0, "presence_penalty": 1.0, "logit_bias": {3: 2.0}},
    ]
    return SamplingParams(max_tokens=9, seed=row, **choices[row % len(choices)])


@pytest.mark.parametrize("vocab", [VOCAB, 9000])
def test_neighbours_do_not_matter(vocab: int) -> None:
    """Equal logits give equal tokens alone and in a changing crowd of 64, whatever the neighbours ask for."""
    steps = [random_logits(64, vocab, seed=step) for step in range(6)]
    source = np.random.default_rng(1)
    crowd = Sampler(vocab)
    singles = [Sampler(vocab) for _ in range(64)]
    for row in range(64):
        for sampler in (crowd, singles[row]):
            sampler.add(row, [1, 2, 3], mixed_params(row))
    for logits in steps:
        rows = source.permutation(64)[: source.integers(1, 65)].tolist()
        together = crowd.sample(rows, logits[rows]).token_ids
        assert together == [singles[row].sample([row], logits[[row]]).token_ids[0] for row in rows]


def test_seeds() -> None:
    logits = random_logits(1)[0]
    assert draw(logits, 20, seed=3) == draw(logits, 20, seed=3)
    assert draw(logits, 20, seed=3) != draw(logits, 20, seed=4)
    assert draw(logits, 20) != draw(logits, 20)
    assert len(draw(logits, 2, seed=-(2**70))) == 2


def test_broken_rows_fall_back_to_the_best_finite_token() -> None:
    logits = random_logits(6)
    sound = logits.copy()
    logits[1, 5] = np.nan
    logits[2, 9] = np.inf
    logits[3] = np.nan
    logits[4] = -np.inf
    for temperature in (0.0, 1.0):
        sampler = Sampler(VOCAB)
        for row in range(6):
            sampler.add(row, [], SamplingParams(max_tokens=3, temperature=temperature, seed=row))
        result = sampler.sample(list(range(6)), logits.copy())
        assert sorted(result.broken_rows) == [1, 2, 3, 4]
        finite = np.where(np.isfinite(logits), logits, -np.inf)
        assert [result.token_ids[row] for row in (1, 2)] == [int(finite[row].argmax()) for row in (1, 2)]
        alone = draw(sound[5], 1, temperature=temperature, seed=5)
        assert result.token_ids[5] == alone[0]


def test_a_sequence_id_may_be_used_again() -> None:
    sampler = Sampler(VOCAB)
    logits = random_logits(1)
    sampler.add(0, [], SamplingParams(max_tokens=1, temperature=0.0))
    sampler.sample([0], logits.copy())
    sampler.remove(0)
    sampler.add(0, [], SamplingParams(max_tokens=1, temperature=0.0, logit_bias={4: 100.0}))
    assert sampler.sample([0], logits.copy()).token_ids == [4]


@pytest.mark.parametrize("num_known", [0, 1, 8, 15])
@pytest.mark.parametrize(
    "params",
    [
        {"seed": 7},
        {"seed": 7, "top_p": 0.8, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"seed": 2**64 - 1, "repetition_penalty": 1.5, "min_tokens": 9, "stop_token_ids": frozenset(range(40))},
        {"temperature": 0.0, "frequency_penalty": 2.0},
    ],
)
def test_it_goes_on_behind_tokens_that_were_sampled_elsewhere(params: dict[str, Any], num_known: int) -> None:
    logits = random_logits(1, seed=3)[0]
    whole = draw(logits, 16, prompt=(1, 2, 3), **params)
    sampler = Sampler(VOCAB)
    sampler.add(0, (1, 2, 3), SamplingParams(max_tokens=16, **params), whole[:num_known])
    rest = [sampler.sample([0], logits.reshape(1, -1).copy()).token_ids[0] for _ in range(16 - num_known)]
    assert rest == whole[num_known:]
