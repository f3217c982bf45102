"""What the ONNX engine does with a plan beyond greedy answers: shared blocks, held caches, seeds, NaN, int8."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from engines import registry
from engines.base import EngineError
from engines.onnx.runner import OnnxRunner
from engines.steps import NewSequence, ScheduledSequence, StepPlan
from engines.types import EngineConfig, SamplingParams
from tests.engines.conftest import BUNDLED
from tests.engines.test_torch_engine import PROMPT, alone

Folders = Callable[[str], Path]
QUESTIONS = ["What is Penstock?", "How do I create a key?", "What is a quota?", "hello", "Which engines are there?"]
QUESTIONS += ["How do I stream an answer?", "What does a 429 mean?", "Tell me about the capital of France"]


def test_sequences_share_prefix_blocks(onnx_folder: Folders, make_onnx_engine: Any, planner: Any) -> None:
    engine = make_onnx_engine(onnx_folder("llama"))
    prompts = [PROMPT, [*PROMPT[:32], 9, 8, 7], PROMPT[:33]]
    expected = [alone(engine, planner, prompt, 10) for prompt in prompts]
    crowd = planner(engine, seed=3)
    first = crowd.add(prompts[0], 10)
    for prompt in prompts[1:]:
        crowd.add(prompt, 10, prefix_of=first)
    assert list(crowd.run().values()) == expected
    tables = [job.table[:2] for job in crowd.jobs if job.table]
    assert all(table == tables[0] for table in tables)


def test_seeded_answers_are_the_torch_engines_alone_and_in_a_crowd(
    model_folder: Folders, onnx_folder: Folders, make_engine: Any, make_onnx_engine: Any, planner: Any
) -> None:
    settings = [{"temperature": 1.0, "seed": seed} for seed in range(3)]
    settings += [{"temperature": 0.8, "seed": -5, "top_p": 0.9}, {"temperature": 1.5, "seed": 2**63, "top_k": 20}]
    torch_engine = make_engine(model_folder("llama"))
    expected = [alone(torch_engine, planner, PROMPT, 12, **chosen) for chosen in settings]
    engine = make_onnx_engine(onnx_folder("llama"), options={"num_blocks": 600})
    assert [alone(engine, planner, PROMPT, 12, **chosen) for chosen in settings] == expected
    crowd = planner(engine, seed=4, preempt=0.05)
    for i in range(64 - len(settings)):
        crowd.add(PROMPT[: 1 + i % 30], 12, temperature=1.0)
    ids = [crowd.add(PROMPT, 12, **chosen) for chosen in settings]
    tokens = crowd.run()
    assert [tokens[sequence_id] for sequence_id in ids] == expected


def decode(sequence_ids: list[int], start: int, count: int) -> list[StepPlan]:
    """Plans of one token for each sequence; sequence i has the blocks from 4 * i on."""
    tables = {i: list(range(4 * i, 4 * i + 4)) for i in sequence_ids}
    return [
        StepPlan([[ScheduledSequence(i, start + step, 1, True, tables[i]) for i in sequence_ids]])
        for step in range(count)
    ]


def test_a_cache_is_gathered_only_when_a_batch_changes(
    onnx_folder: Folders, make_onnx_engine: Any, planner: Any
) -> None:
    engine = make_onnx_engine(onnx_folder("llama"))
    prompts = [PROMPT[i : i + 20] for i in range(3)]
    expected = [alone(engine, planner, prompt, 9) for prompt in prompts]
    gathers: list[tuple[int, ...]] = []
    gather = engine._cache.gather
    engine._cache.gather = lambda slots: gathers.append(slots.shape) or gather(slots)
    greedy = SamplingParams(max_tokens=9, temperature=0)
    prefill = StepPlan(
        [[ScheduledSequence(i, 0, 20, True, list(range(4 * i, 4 * i + 4))) for i in range(3)]],
        [NewSequence(i, prompt, greedy) for i, prompt in enumerate(prompts)],
    )
    plans = [prefill, *decode([0, 1, 2], 20, 4), *decode([2, 0], 24, 4)]
    results = [engine.submit(plan).result().tokens for plan in plans]
    assert [[r[0] for r in results], [r[2] for r in results]] == [expected[0], expected[2]]
    assert [r[1] for r in results[:5]] == expected[1][:5]
    assert gathers == [(2, 24)]


def test_a_held_cache_is_dropped_with_its_sequence(onnx_folder: Folders, make_onnx_engine: Any) -> None:
    """Another sequence under the same number, as far along, gets its own blocks."""
    engine = make_onnx_engine(onnx_folder("llama"))
    greedy = SamplingParams(max_tokens=9, temperature=0)
    first, other = PROMPT[:33], [*PROMPT[1:33], 5]
    answers = []
    for prompt, table in ((other, [0, 1, 2]), (first, [3, 4, 5])):
        engine.submit(
            StepPlan([[ScheduledSequence(0, 0, 32, False, table)]], [NewSequence(0, prompt, greedy)])
        ).result()
        if prompt is other:  # its blocks are full: they can be shared
            engine.submit(StepPlan(finished=[0])).result()
    continued = StepPlan(
        [[ScheduledSequence(0, 32, 1, True, [0, 1, 6])]], [NewSequence(0, other, greedy)], finished=[0]
    )
    answers.append(engine.submit(continued).result().tokens[0])
    engine.submit(StepPlan(finished=[0])).result()
    whole = StepPlan([[ScheduledSequence(0, 0, 33, True, [7, 8, 9])]], [NewSequence(0, other, greedy)])
    answers.append(engine.submit(whole).result().tokens[0])
    assert answers[0] == answers[1]


def test_a_step_may_only_sample_a_part_of_its_sequences(onnx_folder: Folders, make_onnx_engine: Any) -> None:
    engine = make_onnx_engine(onnx_folder("llama"))
    new = [NewSequence(i, PROMPT, SamplingParams(max_tokens=4, temperature=0)) for i in range(2)]
    group = [ScheduledSequence(0, 0, 40, True, [0, 1, 2]), ScheduledSequence(1, 0, 30, False, [3, 4])]
    first = engine.submit(StepPlan([group], new)).result()
    assert list(first.tokens) == [0]
    nothing = engine.submit(StepPlan([[ScheduledSequence(1, 30, 5, False, [3, 4, 5])]])).result()
    assert nothing.tokens == {}
    last = engine.submit(StepPlan([[ScheduledSequence(1, 35, 5, True, [3, 4, 5])]])).result()
    assert last.tokens[1] == first.tokens[0]


def test_an_unknown_position_fails_the_step(onnx_folder: Folders, make_onnx_engine: Any) -> None:
    engine = make_onnx_engine(onnx_folder("llama"))
    new = [NewSequence(0, [1, 2], SamplingParams(max_tokens=4))]
    with pytest.raises(ValueError, match="not known"):
        engine.submit(StepPlan([[ScheduledSequence(0, 0, 3, True, [0])]], new)).result()


def test_broken_numbers_stay_with_their_sequence(onnx_folder: Folders, make_onnx_engine: Any, planner: Any) -> None:
    """One sequence whose keys turn NaN neither changes its neighbour nor the next owner of its blocks."""
    engine = make_onnx_engine(onnx_folder("llama"))
    healthy = alone(engine, planner, PROMPT[:40], 2)
    new = [NewSequence(i, PROMPT, SamplingParams(max_tokens=2, temperature=0)) for i in range(2)]
    tables = [[0, 1, 2], [3, 4, 5]]
    engine.submit(StepPlan([[ScheduledSequence(i, 0, 32, False, tables[i]) for i in range(2)]], new)).result()
    for pool in engine._cache._pools:
        pool[3 * 16 : 5 * 16] = np.nan
    rows = [ScheduledSequence(i, 32, 8, True, tables[i]) for i in (1, 0)]
    result = engine.submit(StepPlan([rows])).result()
    assert result.tokens[0] == healthy[0]
    assert not any(np.isnan(pool).any() for pool in engine._cache._pools)
    reused = [ScheduledSequence(2, 0, 40, True, [5, 4, 3])]
    assert (
        engine.submit(StepPlan([reused], [NewSequence(2, PROMPT, new[0].sampling)], [0, 1])).result().tokens[2]
        == healthy[0]
    )


def test_nothing_is_kept_of_a_finished_sequence(onnx_folder: Folders, make_onnx_engine: Any, planner: Any) -> None:
    engine = make_onnx_engine(onnx_folder("llama"))
    alone(engine, planner, PROMPT, 3)
    runner: OnnxRunner = engine._runner
    records = runner._records
    assert (records._records, runner._held, records._sampler._states) == ({}, {}, {})


# --- the bundled model, and int8


def chat_prompts() -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in messages]


def answers(engine: Any, planner: Any) -> list[list[int]]:
    crowd = planner(engine, seed=2)
    for prompt in chat_prompts():
        crowd.add(prompt, 24)
    return list(crowd.run().values())


def test_the_bundled_model_answers_as_on_torch(
    onnx_folder: Folders, make_engine: Any, make_onnx_engine: Any, planner: Any
) -> None:
    on_torch = answers(make_engine(BUNDLED), planner)
    assert answers(make_onnx_engine(onnx_folder("tiny-chat")), planner) == on_torch


def test_int8_answers_mostly_the_same(onnx_folder: Folders, make_onnx_engine: Any, planner: Any) -> None:
    """Measured on 96 held-out questions: 99 % of the tokens."""
    folder = onnx_folder("tiny-chat")
    exact = answers(make_onnx_engine(folder), planner)
    engine = make_onnx_engine(folder, quantize="int8")
    assert "int8" in engine.info.description
    rounded = answers(engine, planner)
    pairs = [(a, b) for left, right in zip(exact, rounded, strict=True) for a, b in zip(left, right, strict=True)]
    assert sum(a == b for a, b in pairs) >= 0.8 * len(pairs)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engines.onnx.engine", raising=False)
    monkeypatch.delitem(sys.modules, "engines.onnx.session", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r'onnx needs onnxruntime: install it with pip install "penstock\[onnx\]"'):
        registry.create(EngineConfig("onnx", "somewhere"))
