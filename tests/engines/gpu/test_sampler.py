"""Sampling on the device chooses what sampling on the CPU chooses. Without a GPU, torch's CPU is the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.constraint import GrammarError, Matcher
from engines.sampling import Sampler
from engines.torch.gpu.sampler import DeviceSampler, SampledRow
from engines.types import Grammar, GrammarKind, SamplingParams

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 40
Logits = NDArray[np.float32]


class EvenOrOdd(Matcher):
    """Lets even and odd tokens take turns, and gives up after 5."""

    def __init__(self) -> None:
        self.count = 0

    def banned(self) -> NDArray[np.bool_]:
        if self.count == 5:
            raise GrammarError("no token fits")
        return np.arange(VOCAB) % 2 == self.count % 2

    def advance(self, token: int) -> bool:
        self.count += 1
        return self.count > 6


class Grammars:
    def matcher(self, params: SamplingParams, vocab_size: int, tokens: Any = ()) -> Matcher:
        return EvenOrOdd()


class Both:
    """The two paths side by side, fed with the same logits."""

    def __init__(self, all_params: list[SamplingParams], prompts: list[list[int]]) -> None:
        self.host, self.twin = Sampler(VOCAB, Grammars()), Sampler(VOCAB, Grammars())
        self.device = DeviceSampler(VOCAB, len(all_params), DEVICE)
        self.num_generated = [0] * len(all_params)
        for i, (params, prompt) in enumerate(zip(all_params, prompts, strict=True)):
            self.host.add(i, prompt, params)
            self.twin.add(i, prompt, params)
            self.device.begin(i, self.twin.state(i), prompt, [])

    def step(self, ids: list[int], logits: Logits) -> tuple[list[int], list[int]]:
        rows = [SampledRow(i, i, self.twin.state(i), self.num_generated[i]) for i in ids]
        pending = self.device.sample(rows, torch.from_numpy(logits.copy()).to(DEVICE))
        ours = pending.tokens.tolist()
        expected = self.host.sample(ids, logits.copy())
        for i, token in zip(ids, ours, strict=True):
            self.num_generated[i] += 1
            self.twin.state(i).record(token)
        told = pending.logprobs()
        assert sorted(told) == [ids[row] for row in sorted(expected.logprobs, key=lambda row: ids[row])]
        for row, tokens in expected.logprobs.items():
            mine = told[ids[row]]
            assert mine.logprob == pytest.approx(tokens.logprob, abs=1e-4)
            values = [value for _, value in tokens.top]
            assert [value for _, value in mine.top] == pytest.approx(values, abs=1e-4)
        assert self.device.last_tokens[ids].tolist() == ours
        return ours, expected.token_ids


# Logits are sixteenths: equal ones are equal on both paths, and others are far enough apart.
logit_rows = st.integers(0, 2**32 - 1).map(
    lambda seed: (np.random.default_rng(seed).integers(-80, 80, VOCAB) / 16).astype(np.float32)
)
params = st.builds(
    SamplingParams,
    max_tokens=st.just(20),
    min_tokens=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1e-3, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 20, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.25]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.25]),
    logit_bias=st.dictionaries(st.integers(-1, VOCAB), st.sampled_from([-100.0, 2.0, 100.0]), max_size=3),
    seed=st.integers(0, 2**31),
    stop_token_ids=st.frozensets(st.integers(0, VOCAB), max_size=3),
    logprobs=st.sampled_from([None, None, 0, 3]),
    grammar=st.sampled_from([None, None, Grammar(GrammarKind.LARK, "")]),
)


@settings(max_examples=60)
@given(st.data())
def test_both_paths_choose_the_same_tokens(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    both = Both(
        data.draw(st.lists(params, min_size=count, max_size=count)),
        data.draw(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5), min_size=count, max_size=count)),
    )
    for _ in range(8):
        ids = data.draw(st.lists(st.sampled_from(range(count)), min_size=1, unique=True))
        logits = np.stack([data.draw(logit_rows) for _ in ids])
        ours, expected = both.step(ids, logits)
        assert ours == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_sound_fall_back_to_the_best_finite_token(temperature: float) -> None:
    logits = np.random.default_rng(0).standard_normal((6, VOCAB)).astype(np.float32)
    logits[1, 5] = np.nan
    logits[2, 9] = np.inf
    logits[3] = np.nan
    logits[4] = -np.inf
    all_params = [SamplingParams(max_tokens=3, temperature=temperature, seed=i, top_p=0.9) for i in range(6)]
    both = Both(all_params, [[]] * 6)
    for _ in range(3):
        ours, expected = both.step(list(range(6)), logits)
        assert ours == expected


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.95}, {"top_k": 600}, {"top_k": 2000, "top_p": 0.9}], ids=str)
def test_a_large_vocabulary(filters: dict[str, Any]) -> None:
    """Many random numbers of one row: as the CPU draws them, one after another."""
    vocab, count = 5000, 200
    row = (np.random.default_rng(1).integers(-64, 64, vocab) / 16).astype(np.float32)
    host, device = Sampler(vocab), DeviceSampler(vocab, count, DEVICE)
    rows = []
    for i in range(count):
        chosen = SamplingParams(max_tokens=1, seed=i, **filters)
        host.add(i, [], chosen)
        twin = Sampler(vocab)
        twin.add(i, [], chosen)
        rows.append(SampledRow(i, i, twin.state(i), 0))
    logits = np.tile(row, (count, 1))
    ours = device.sample(rows, torch.from_numpy(logits.copy()).to(DEVICE)).tokens.tolist()
    assert ours == host.sample(list(range(count)), logits).token_ids
    assert len(set(ours)) > 50


def test_counts_go_on_behind_tokens_that_were_sampled_before() -> None:
    """A sequence that gets another slot is counted anew."""
    row = np.zeros((1, VOCAB), dtype=np.float32)
    chosen = SamplingParams(max_tokens=VOCAB, temperature=0.0, presence_penalty=10.0, repetition_penalty=1.1)
    device = DeviceSampler(VOCAB, 2, DEVICE)
    twin = Sampler(VOCAB)
    twin.add(0, [0, 1], chosen)
    device.begin(0, twin.state(0), [0, 1], [])
    answer = []
    for i in range(6):
        if i == 3:
            device.begin(1, twin.state(0), [0, 1], list(answer))
        rows = [SampledRow(0, int(i >= 3), twin.state(0), i)]
        answer += device.sample(rows, torch.from_numpy(row.copy()).to(DEVICE)).tokens.tolist()
    assert answer == [0, 1, 2, 3, 4, 5]
