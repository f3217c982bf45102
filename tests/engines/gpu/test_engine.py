"""The whole GPU engine behind its protocol, with torch's CPU as its device: threads, order, shortages, grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.base import EngineError, OutOfMemory
from engines.steps import NewSequence, ScheduledSequence, StepPlan
from engines.torch.gpu.engine import GpuEngine
from engines.torch.gpu.reference import ReferenceAttention
from engines.types import EngineConfig, SamplingParams

PROMPT = [(7 * i) % 150 + 2 for i in range(40)]
CPU = torch.device("cpu")


@pytest.fixture
def make_gpu_engine(model_folder: Callable[[str], Path]) -> Iterator[Callable[..., GpuEngine]]:
    engines: list[GpuEngine] = []

    def make(name: str = "llama", **config: Any) -> GpuEngine:
        options = {"num_blocks": 200, "threads": 1}
        config = {"dtype": "float32"} | config
        engines.append(
            GpuEngine(
                EngineConfig("torch", str(model_folder(name)), options=options, **config), CPU, ReferenceAttention
            )
        )
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_answers_as_the_cpu_engine(
    make_gpu_engine: Any, model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    engine = make_gpu_engine()
    assert engine.info.steps_in_flight == 2
    answers = []
    for each in (engine, make_engine(model_folder("llama"))):
        crowd = planner(each, seed=2, preempt=0.1)
        for i in range(8):
            crowd.add(PROMPT[: 3 + 4 * i], 8, **({"temperature": 1.0, "seed": i} if i % 2 else {}))
        answers.append(crowd.run())
        each.submit(StepPlan(finished=crowd.finished)).result(60)
    assert answers[0] == answers[1]


def test_a_shortage_fails_the_steps_behind_it_until_the_engine_resumes(
    make_gpu_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_gpu_engine()
    new = [NewSequence(0, PROMPT, SamplingParams(max_tokens=4, temperature=0))]
    prefill = ScheduledSequence(0, 0, 40, True, [0, 1, 2])
    decode = ScheduledSequence(0, 40, 1, True, [0, 1, 2])
    expected = [engine.submit(StepPlan([[prefill]], new)).result(60), engine.submit(StepPlan([[decode]])).result(60)]
    run = engine._runner._call_model

    def lacking(*args: Any) -> Any:
        monkeypatch.setattr(engine._runner, "_call_model", run)
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = engine.submit(StepPlan([[prefill]], new, finished=[0]))
    first.result(60)
    monkeypatch.setattr(engine._runner, "_call_model", lacking)
    short, behind = engine.submit(StepPlan([[decode]])), engine.submit(StepPlan([[decode]]))
    for failed in (short, behind):
        with pytest.raises(OutOfMemory):
            failed.result(60)
    engine.resume()
    answered = [NewSequence(0, PROMPT, new[0].sampling, [first.result().tokens[0]])]
    again = StepPlan([[ScheduledSequence(0, 0, 41, True, [3, 4, 5])]], answered, finished=[0])
    assert first.result().tokens == expected[0].tokens
    assert engine.submit(again).result(60).tokens == expected[1].tokens


def test_a_cancelled_answer_harms_nobody(make_gpu_engine: Any) -> None:
    engine = make_gpu_engine()
    new = [NewSequence(0, PROMPT, SamplingParams(max_tokens=4, temperature=0))]
    engine.submit(StepPlan([[ScheduledSequence(0, 0, 40, True, [0, 1, 2])]], new)).cancel()
    result = engine.submit(StepPlan([[ScheduledSequence(0, 40, 1, True, [0, 1, 2])]])).result(60)
    assert list(result.tokens) == [0]


def test_quantized_weights_are_refused(make_gpu_engine: Any) -> None:
    with pytest.raises(EngineError, match="int8"):
        make_gpu_engine(quantize="int8")
