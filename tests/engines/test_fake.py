"""The deterministic engine, and the thread that it shares with other step engines."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import registry
from engines.base import EngineError, OutOfMemory, ThreadedStepEngine
from engines.fake import CONTEXT, FakeEngine
from engines.fake_tokens import fake_answer
from engines.steps import NewSequence, ScheduledSequence, StepPlan, StepResult
from engines.types import EngineConfig, SamplingParams
from tests.fakes import make_info

PROMPT = [104, 105]


def plan_rows(*rows: ScheduledSequence, new: tuple[NewSequence, ...] = (), finished: tuple[int, ...] = ()) -> StepPlan:
    return StepPlan([list(rows)] if rows else [], list(new), list(finished))


def introduce(sequence_id: int, prompt: list[int]) -> NewSequence:
    return NewSequence(sequence_id, prompt, SamplingParams(max_tokens=9))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(0, 30))
def test_an_answer_is_a_function_of_its_prompt(prompt, length):
    answer = fake_answer(prompt, length)
    assert answer == fake_answer(list(prompt), length + 5)[:length]
    assert all(32 <= token < 127 for token in answer)


def test_prompts_differ():
    assert len({tuple(fake_answer([a, b], 20)) for a in range(10) for b in range(10)}) == 100


def test_the_engine_gives_that_answer_in_chunks_after_preemption_and_beside_others():
    engine = FakeEngine(EngineConfig("fake"))
    long = [7] * 40
    steps = [
        plan_rows(ScheduledSequence(0, 0, 2, True, []), new=(introduce(0, PROMPT),)),
        plan_rows(
            ScheduledSequence(0, 2, 1, True, []), ScheduledSequence(1, 0, 30, False, []), new=(introduce(1, long),)
        ),
        plan_rows(ScheduledSequence(0, 0, 4, True, []), ScheduledSequence(1, 30, 10, True, [])),
    ]
    results = [engine.submit(step).result(timeout=30).tokens for step in steps]
    expected = fake_answer(PROMPT, 3)
    assert results == [
        {0: expected[0]},
        {0: expected[1]},
        {0: expected[2], 1: fake_answer(long, 1)[0]},
    ]
    engine.close()


def test_a_finished_sequence_is_forgotten():
    engine = FakeEngine(EngineConfig("fake"))
    engine.submit(plan_rows(ScheduledSequence(0, 0, 2, True, []), new=(introduce(0, PROMPT),))).result(timeout=30)
    engine.submit(plan_rows(finished=(0,))).result(timeout=30)
    assert not engine._known
    engine.close()


def test_defaults():
    engine = FakeEngine(EngineConfig("fake", max_num_seqs=0))
    info = engine.info
    assert (info.max_model_len, info.vocab_size, info.max_num_seqs, info.steps_in_flight) == (CONTEXT, 256, 64, 1)
    assert info.num_blocks * info.block_size >= 4 * CONTEXT
    engine.close()


def test_options_and_limits():
    options = {"delay_ms": 0.5, "vocab": 300, "num_blocks": 7, "token_budget": 9, "steps_in_flight": 2}
    engine = FakeEngine(EngineConfig("fake", max_model_len=100, max_num_seqs=3, options=options))
    info = engine.info
    assert (info.max_model_len, info.max_num_seqs, info.vocab_size) == (100, 3, 300)
    assert (info.num_blocks, info.token_budget, info.steps_in_flight) == (7, 9, 2)
    engine.close()


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 5},
        {"delay_ms": -1},
        {"delay_ms": "5"},
        {"delay_ms": True},
        {"delay_ms": float("inf")},
        {"delay_ms": float("nan")},
        {"num_blocks": 1.5},
        {"vocab": None},
    ],
)
def test_a_bad_option_is_named(options):
    with pytest.raises(EngineError, match=f"options.{next(iter(options))}: "):
        FakeEngine(EngineConfig("fake", options=options))


def test_an_unknown_kind_is_named():
    with pytest.raises(EngineError, match=r'expected one of torch, .*got "tensorflow"'):
        registry.create(EngineConfig("tensorflow"))


def test_the_step_that_is_to_fail_fails():
    engine = FakeEngine(EngineConfig("fake", options={"fail_at_step": 2}))
    assert engine.submit(StepPlan()).result(timeout=30) == StepResult()
    with pytest.raises(RuntimeError):
        engine.submit(StepPlan()).result(timeout=30)
    engine.close()


# --- ThreadedStepEngine


class GatedEngine(ThreadedStepEngine):
    """Runs a step when `gate` is set, and notes which."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.ran: list[list[int]] = []
        super().__init__(make_info())

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.gate.wait(timeout=30)
        self.ran.append(plan.finished)
        if plan.finished == [-1]:
            raise ValueError("a bad step")
        if plan.finished == [-2]:
            raise MemoryError
        return StepResult()


def test_steps_run_in_order_and_close_waits_for_them():
    engine = GatedEngine()
    futures = [engine.submit(StepPlan(finished=[number])) for number in range(20)]
    assert not any(future.done() for future in futures)
    engine.gate.set()
    engine.close()
    assert all(future.done() for future in futures)
    assert engine.ran == [[number] for number in range(20)]
    assert not engine._thread.is_alive()


def test_a_failed_step_says_so_and_the_thread_lives():
    engine = GatedEngine()
    engine.gate.set()
    with pytest.raises(ValueError, match="a bad step"):
        engine.submit(StepPlan(finished=[-1])).result(timeout=30)
    engine.submit(StepPlan()).result(timeout=30)
    engine.close()


@pytest.mark.parametrize("steps_behind", [0, 2])
def test_what_is_submitted_behind_a_shortage_of_memory_does_not_run(steps_behind):
    engine = GatedEngine()
    futures = [engine.submit(StepPlan(finished=[number])) for number in [-2, *range(steps_behind)]]
    engine.gate.set()
    for future in futures:
        with pytest.raises(OutOfMemory):
            future.result(timeout=30)
    assert engine.ran == [[-2]]
    engine.resume()
    engine.submit(StepPlan(finished=[9])).result(timeout=30)
    assert engine.ran == [[-2], [9]]
    engine.close()


def test_a_step_that_nobody_awaits_any_more_is_not_run():
    engine = GatedEngine()
    running, cancelled, last = (engine.submit(StepPlan(finished=[n])) for n in range(3))
    assert cancelled.cancel()
    engine.gate.set()
    assert last.result(timeout=30) == running.result(timeout=30) == StepResult()
    assert engine.ran == [[0], [2]]
    engine.close()
