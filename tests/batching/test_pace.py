"""What the pace learns of engines of several kinds, in steps of a fake clock, and what it then lets into a step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.pace import GROWTH, MAX_AGE, MAX_PREFILLS, MAX_SLOWDOWN, Pace, StepLoad, share_out
from batching.scheduler import SchedulerConfig
from engines.steps import ScheduledSequence, StepPlan
from tests.fakes import FOREVER, Simulation, make_info, make_request

BLOCK, BUDGET, LONG = 16, 512, 4000


@dataclass
class Machine:
    """`alone(decodes)` seconds, and `added(tokens, their first position)`."""

    alone: Callable[[int], float]
    added: Callable[[int, int], float]
    noise: float = 0.0  # steps are slower by accident, never faster
    outliers: float = 0.0  # so many of them take five times as long
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def seconds(self, decodes: int, tokens: int = 0, start: int = 0) -> float:
        exact = self.alone(decodes) + (self.added(tokens, start) if tokens else 0.0)
        accident = 5.0 if self.rng.random() < self.outliers else 1 + abs(self.rng.gauss(0, self.noise))
        return exact * accident


MACHINES = {
    "a processor": Machine(lambda n: 0.04 + 0.002 * n, lambda t, at: 0.003 * t * (1 + at / 8000)),
    "few tokens almost for nothing": Machine(lambda n: 0.1, lambda t, at: 0.001 * t if t <= 16 else 0.1 + 0.0013 * t),
    "prompts almost for nothing": Machine(lambda n: 0.02, lambda t, at: 1e-6 * t),
    "a tiny model": Machine(lambda n: 0.001, lambda t, at: 0.00002 * t),
}


def run(machine: Machine, pace: Pace, decodes: int, count: int) -> list[float]:
    """Steps of decodes alone."""
    gaps = [machine.seconds(decodes) for _ in range(count)]
    for gap in gaps:
        pace.observe(StepLoad(decodes, 0), gap)
    return gaps


def prefill(machine: Machine, pace: Pace, decodes: int, length: int = LONG) -> list[float]:
    """What the steps take until a prompt is through."""
    gaps, start = [], 0
    while start < length:
        tokens = min(length - start, pace.prefill_tokens(decodes, BUDGET - decodes))
        gaps.append(machine.seconds(decodes, tokens, start))
        pace.observe(StepLoad(decodes, tokens), gaps[-1])
        start += tokens
    return gaps


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def warm(machine: Machine, decodes: int) -> Pace:
    """After a slow first step, and two prompts."""
    pace = Pace(BLOCK)
    pace.observe(StepLoad(0, 100), 10 * machine.seconds(0, 100))
    run(machine, pace, decodes, 20)
    for _ in range(2):
        prefill(machine, pace, decodes)
    return pace


@pytest.mark.parametrize("decodes", [1, 5, 16])
@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("name", MACHINES)
def test_a_long_prompt_keeps_to_the_pace(name, noise, decodes):
    machine = MACHINES[name]
    machine.noise, machine.rng = noise, random.Random(decodes)
    pace = warm(machine, decodes)
    alone = run(machine, pace, decodes, 200)
    gaps = prefill(machine, pace, decodes)
    assert p99(gaps) <= 3 * p99(alone) + 0.001


@pytest.mark.parametrize("name", MACHINES)
def test_the_bound_is_used(name):
    """A prompt takes little longer than with the best chunk, tried out for the whole of it."""
    machine, decodes = MACHINES[name], 4
    machine.noise = 0.0
    pace = warm(machine, decodes)

    def seconds_in_chunks(tokens: int) -> float:
        gaps = [machine.seconds(decodes, tokens, start) for start in range(0, LONG, tokens)]
        return sum(gaps) if max(gaps) <= MAX_SLOWDOWN * machine.alone(decodes) + 0.001 else float("inf")

    best = min(seconds_in_chunks(tokens) for tokens in range(BLOCK // 2, BUDGET - decodes, BLOCK // 2))
    assert sum(prefill(machine, pace, decodes)) <= 1.5 * best


def test_accidents_do_not_ruin_it():
    machine = MACHINES["a processor"]
    machine.noise, machine.outliers = 0.1, 0.03
    pace = warm(machine, 4)
    run(machine, pace, 4, 200)
    machine.outliers = 0.0
    sizes = [pace.prefill_tokens(4, BUDGET) for _ in range(3)]
    assert 8 <= sizes[0] <= 40, "0.072 s more are 24 tokens at its beginning"
    gaps = prefill(machine, pace, 4)
    assert p99(gaps) <= 3 * p99(run(machine, pace, 4, 200))


def test_where_the_bound_can_not_be_held_a_prompt_does_not_take_for_ever():
    """As where decodes alone are a CUDA graph. In half blocks it would take 500 steps."""
    machine = Machine(lambda n: 0.004, lambda t, at: 0.015 + 0.00003 * t)
    pace = warm(machine, 8)
    gaps = prefill(machine, pace, 8)
    assert len(gaps) < LONG / 30
    assert max(gaps) < 1.5 * 0.02


def test_a_slower_machine_is_found_out_and_a_faster_one_too():
    machine = Machine(lambda n: 0.05, lambda t, at: 0.002 * t)
    pace = warm(machine, 4)
    usual = pace.prefill_tokens(4, BUDGET)
    slow = Machine(lambda n: 0.05, lambda t, at: 0.008 * t)
    prefill(slow, pace, 4)
    assert pace.prefill_tokens(4, BUDGET) < usual / 2
    prefill(machine, pace, 4)
    run(machine, pace, 4, 20)
    prefill(machine, pace, 4)
    assert pace.prefill_tokens(4, BUDGET) >= usual / 1.5


def test_without_decodes_or_measurements_there_is_no_bound():
    pace = Pace(BLOCK)
    assert pace.prefill_tokens(9, BUDGET) == BUDGET, "an engine that nobody measures"
    pace.observe(StepLoad(1, 0), 0.1)
    pace.observe(StepLoad(1, 16), 0.3)
    assert pace.prefill_tokens(0, BUDGET) == BUDGET
    assert pace.prefill_tokens(1, BUDGET) == 9, "0.2 s for 16, 0.12 s are allowed"
    unbounded = Pace(BLOCK, max_slowdown=float("inf"))
    unbounded.observe(StepLoad(1, 0), 0.1)
    assert unbounded.prefill_tokens(1, BUDGET) == BUDGET


def test_what_decodes_take_alone_is_measured_first_and_now_and_then():
    machine = MACHINES["a processor"]
    machine.noise = 0.0
    pace = Pace(BLOCK)
    pace.observe(StepLoad(0, 100), machine.seconds(0, 100))
    assert pace.prefill_tokens(4, BUDGET) == 0
    run(machine, pace, 4, 1)
    assert pace.prefill_tokens(4, BUDGET) > 0
    assert pace.prefill_tokens(9, BUDGET) == 0, "so many were not there yet"
    sizes = [len(prefill(machine, pace, 4, 1)) for _ in range(MAX_AGE)]
    assert sizes == [1] * MAX_AGE
    pace.observe(StepLoad(4, 8), 0.1)
    assert pace.prefill_tokens(4, BUDGET) == 0


@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 600), st.floats(0, 100)), max_size=60),
    st.integers(1, 64),
    st.integers(0, 600),
    st.integers(1, 40),
)
def test_whatever_was_measured_the_answer_is_within_the_budget(samples, decodes, budget, block_size):
    pace = Pace(block_size)
    for num_decodes, tokens, seconds in samples:
        pace.observe(StepLoad(num_decodes, tokens), seconds)
    allowed = pace.prefill_tokens(decodes, budget)
    assert 0 <= allowed <= budget
    known = max((tokens for _, tokens, _ in samples), default=0)
    if samples and any(n or t for n, t, _ in samples):
        assert allowed <= max(GROWTH * known, known + block_size, block_size)


def test_of_a_plan_decodes_and_tokens_of_prompts_are_counted():
    rows = [ScheduledSequence(i, 0, tokens, False, []) for i, tokens in enumerate([5, 3, 1, 1, 1])]
    assert StepLoad.of(StepPlan([rows[:2], rows[2:4], rows[4:]])) == StepLoad(3, 8)
    assert StepLoad.of(StepPlan()) == StepLoad(0, 0)


# --- who gets it


@given(st.integers(0, 300), st.lists(st.integers(1, 400), max_size=6))
def test_a_step_is_shared_out(budget, wanted):
    shares = share_out(budget, wanted)
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) == min(budget, sum(wanted))
    if wanted:
        assert shares[0] >= min(wanted[0], budget // 2), "the oldest gets on"
    others = sorted(zip(wanted[1:], shares[1:], strict=True), key=lambda pair: pair[0])
    unfinished = [share for want, share in others if share < want]
    assert all(share == 0 for share in unfinished[1:]), "the shorter one first, until it has all"


def test_equals_are_worked_off_one_after_the_other():
    assert share_out(100, [300, 300, 300]) == [100, 0, 0]
    assert share_out(100, [300, 40, 200]) == [50, 40, 10]
    assert share_out(100, [40, 300]) == [40, 60]


# --- in the scheduler


def gaps_of(simulation: Simulation, name: str) -> dict[str, list[float]]:
    """The gaps between the tokens of all running streams until this request has its first one."""
    gaps: dict[str, list[float]] = {}
    since = dict.fromkeys(simulation.answers, simulation.clock.now)
    while not simulation.answers[name]:
        before = {request_id: len(answer) for request_id, answer in simulation.answers.items()}
        simulation.step()
        for request_id, count in before.items():
            if len(simulation.answers[request_id]) > count:
                gaps.setdefault(request_id, []).append(simulation.clock.now - since[request_id])
                since[request_id] = simulation.clock.now
    return gaps


def timed(steps_in_flight: int) -> Simulation:
    """Five streams, on an engine whose steps pass time."""
    info = make_info(num_blocks=6000, max_num_seqs=16, token_budget=256, steps_in_flight=steps_in_flight)
    simulation = Simulation(info, SchedulerConfig(queue_timeout=FOREVER))

    def seconds(load: StepLoad) -> float:
        taken = 0.05 + 0.002 * load.num_decodes + 0.003 * load.num_prefill_tokens
        simulation.clock.advance(taken)
        return taken

    simulation.seconds = seconds
    for number in range(5):
        simulation.add(make_request(f"chat{number}", [number] * 10, max_tokens=600))
    for _ in range(20):
        simulation.step()
    return simulation


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_streams_keep_their_pace_while_a_long_prompt_arrives(steps_in_flight):
    simulation = timed(steps_in_flight)
    for name in ("first", "second"):
        simulation.add(make_request(name, [(i * i) % 97 for i in range(900)], max_tokens=1, salt=name.encode()))
        gaps = gaps_of(simulation, name)
        assert all(len(gaps[f"chat{n}"]) >= 20 for n in range(5))
        assert max(gap for its in gaps.values() for gap in its[2:]) <= 3 * 0.06


def test_short_prompts_pass_a_long_one_and_it_gets_on():
    simulation = timed(1)
    simulation.add(make_request("long", [i % 97 for i in range(900)], max_tokens=1))
    simulation.step()
    waits = []
    for number in range(200):
        begun = simulation.clock.now
        name = f"short{number}"
        simulation.add(make_request(name, [number % 97, number // 97, *range(20)], max_tokens=1, account="b"))
        gaps_of(simulation, name)
        waits.append(simulation.clock.now - begun)
        if simulation.answers["long"]:
            break
    assert simulation.answers["long"], "it starved"
    assert max(waits) < 1.0


def test_of_several_long_prompts_few_are_begun_at_a_time():
    simulation = timed(1)
    for number in range(8):
        simulation.add(make_request(f"long{number}", [10 + number] * 500, max_tokens=1, account=f"a{number}"))
    for _ in range(60):
        simulation.step()
        running = simulation.scheduler.lanes.foreground.running
        assert sum(s.num_uncomputed_tokens > 1 for s in running) <= MAX_PREFILLS
    simulation.drain()
    ends = [name for name in simulation.ends if name.startswith("long")]
    assert ends == sorted(ends), "equals keep their order"


def test_an_unmeasured_engine_is_not_held_back():
    simulation = Simulation(make_info(max_model_len=8192, num_blocks=6000, token_budget=256))
    simulation.add(make_request("chat", max_tokens=1000))
    simulation.step()
    simulation.add(make_request("long", [1] * LONG, max_tokens=1, deadline=FOREVER))
    assert StepLoad.of(simulation.plan()).num_prefill_tokens == 255
