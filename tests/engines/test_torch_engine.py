"""What the engine does with a plan beyond greedy answers alone: shared blocks, order, seeds, broken numbers, dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.steps import NewSequence, ScheduledSequence, StepPlan
from engines.types import SamplingParams

PROMPT = [(7 * i) % 150 + 2 for i in range(40)]


def alone(engine: Any, planner: Any, prompt: list[int], count: int, **sampling: Any) -> list[int]:
    single = planner(engine)
    sequence = single.add(prompt, count, **sampling)
    tokens: list[int] = single.run()[sequence]
    engine.submit(StepPlan(finished=single.finished)).result()
    return tokens


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_sequences_share_prefix_blocks(
    name: str, model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    engine = make_engine(model_folder(name))
    prompts = [PROMPT, [*PROMPT[:32], 9, 8, 7], PROMPT[:33]]
    expected = [alone(engine, planner, prompt, 10) for prompt in prompts]
    crowd = planner(engine, seed=3)
    first = crowd.add(prompts[0], 10)
    for prompt in prompts[1:]:
        crowd.add(prompt, 10, prefix_of=first)
    assert list(crowd.run().values()) == expected
    tables = [job.table[:2] for job in crowd.jobs if job.table]
    assert all(table == tables[0] for table in tables)


def test_seeded_answers_are_the_same_alone_and_in_a_crowd(
    model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    engine = make_engine(model_folder("llama"), options={"num_blocks": 600})
    settings = [{"temperature": 1.0, "seed": seed} for seed in range(3)]
    settings += [{"temperature": 0.8, "seed": -5, "top_p": 0.9}, {"temperature": 1.5, "seed": 2**63, "top_k": 20}]
    expected = [alone(engine, planner, PROMPT, 12, **chosen) for chosen in settings]
    crowd = planner(engine, seed=4, preempt=0.05)
    for i in range(64 - len(settings)):
        crowd.add(PROMPT[: 1 + i % 30], 12, temperature=1.0)
    ids = [crowd.add(PROMPT, 12, **chosen) for chosen in settings]
    tokens = crowd.run()
    assert [tokens[sequence_id] for sequence_id in ids] == expected
    assert len({tuple(answer) for answer in expected}) == len(expected)


@pytest.mark.usefixtures("without_kernel")
def test_long_contexts_attend_in_several_calls(
    model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    engine = make_engine(model_folder("llama"))
    prompts = [PROMPT * 2, PROMPT, PROMPT[:5], PROMPT[:39]]
    expected = [alone(engine, planner, prompt, 8) for prompt in prompts]
    engine._attention.cache.gather_tokens = 100
    crowd = planner(engine)
    for prompt in prompts:
        crowd.add(prompt, 8)
    assert list(crowd.run().values()) == expected


def test_a_step_may_only_sample_a_part_of_its_sequences(model_folder: Callable[[str], Path], make_engine: Any) -> None:
    engine = make_engine(model_folder("llama"))
    new = [NewSequence(i, PROMPT, SamplingParams(max_tokens=4, temperature=0)) for i in range(2)]
    group = [ScheduledSequence(0, 0, 40, True, [0, 1, 2]), ScheduledSequence(1, 0, 30, False, [3, 4])]
    first = engine.submit(StepPlan([group], new)).result()
    assert list(first.tokens) == [0]
    nothing = engine.submit(StepPlan([[ScheduledSequence(1, 30, 5, False, [3, 4, 5])]])).result()
    assert nothing.tokens == {}
    last = engine.submit(StepPlan([[ScheduledSequence(1, 35, 5, True, [3, 4, 5])]])).result()
    assert last.tokens[1] == first.tokens[0]


def test_a_sequence_may_finish_with_a_step_in_flight(model_folder: Callable[[str], Path], make_engine: Any) -> None:
    engine = make_engine(model_folder("llama"))
    new = [NewSequence(0, PROMPT, SamplingParams(max_tokens=4, temperature=0))]
    engine.submit(StepPlan([[ScheduledSequence(0, 0, 40, True, [0, 1, 2])]], new))
    engine.submit(StepPlan([[ScheduledSequence(0, 40, 1, True, [0, 1, 2])]]))
    assert engine.submit(StepPlan(finished=[0])).result().tokens == {}


def test_an_unknown_position_fails_the_step(model_folder: Callable[[str], Path], make_engine: Any) -> None:
    engine = make_engine(model_folder("llama"))
    new = [NewSequence(0, [1, 2], SamplingParams(max_tokens=4))]
    future = engine.submit(StepPlan([[ScheduledSequence(0, 0, 3, True, [0])]], new))
    with pytest.raises(ValueError, match="not known"):
        future.result()


@pytest.mark.parametrize("by", ["default", "without_kernel"])
def test_broken_numbers_stay_with_their_sequence(
    by: str, request: pytest.FixtureRequest, model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    """One sequence whose keys turn NaN neither changes its neighbour nor the next owner of its blocks."""
    if by != "default":
        request.getfixturevalue(by)
    engine = make_engine(model_folder("llama"))
    healthy = alone(engine, planner, PROMPT[:20], 6)
    weight = engine._runner._model.get_input_embeddings().weight
    with torch.inference_mode():
        saved = weight[1].clone()
        weight[1] = float("nan")
        new = [NewSequence(i, p, SamplingParams(max_tokens=2, temperature=0)) for i, p in enumerate([PROMPT, [1] * 32])]
        group = [ScheduledSequence(0, 0, 40, True, [0, 1, 2]), ScheduledSequence(1, 0, 32, True, [3, 4])]
        assert set(engine.submit(StepPlan([group], new)).result().tokens) == {0, 1}
        weight[1] = saved
    new = [NewSequence(2, PROMPT[:20], SamplingParams(max_tokens=2, temperature=0))]
    plans = [StepPlan([[ScheduledSequence(2, 0, 19, False, [3, 4])]], new, finished=[0, 1])]
    plans += [StepPlan([[ScheduledSequence(2, 19 + i, 1, True, [3, 4])]]) for i in range(6)]
    results = [engine.submit(plan).result() for plan in plans]
    assert [result.tokens[2] for result in results[1:]] == healthy


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_bfloat16_runs(name: str, model_folder: Callable[[str], Path], make_engine: Any, planner: Any) -> None:
    engine = make_engine(model_folder(name), dtype="bfloat16")
    assert "bfloat16" in engine.info.description
    crowd = planner(engine)
    for length in (3, 17, 40):
        crowd.add(PROMPT[:length], 6)
    answers = crowd.run().values()
    assert all(0 <= token < engine.info.vocab_size for answer in answers for token in answer)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stories260K", "tinyllm-chat", "babyllama-tok105"])
def test_equals_the_golden_answers(name: str, shared_data: Path, make_engine: Any, planner: Any) -> None:
    cases = json.loads((shared_data / "golden" / "greedy.json").read_text(encoding="utf-8"))[name]
    engine = make_engine(shared_data / "models" / name, max_num_seqs=8)
    crowd = planner(engine, seed=1, preempt=0.01)
    for case in cases:
        crowd.add(case["prompt_ids"], len(case["new_ids"]))
    assert list(crowd.run().values()) == [case["new_ids"] for case in cases]
