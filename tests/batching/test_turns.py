"""Whose step is next: property tests of the rule, and of what it does to sequences in steps of the paper engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batching.lanes import MIN_SEQS_TO_SHARE
from batching.turns import CALM, LINGER, SHARE, Turn, Turns, background_tokens
from engines.steps import StepPlan
from engines.types import BACKGROUND_PRIORITY
from tests.fakes import Simulation, make_info, make_request


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.floats(0, 2 * LINGER)), max_size=300))
def test_nobody_waits_long_for_the_background_nor_it_for_ever(script: list[tuple[bool, bool, bool, float]]) -> None:
    """Who has work, whether the background can run when it is its turn, and the time between two steps."""
    turns, now, passed, calm = Turns(), 0.0, 0, LINGER
    for foreground, background, can_run, seconds in script:
        now, calm = now + seconds, calm + seconds
        turn = turns.next(now, foreground=foreground, background=background)
        if foreground:
            calm = 0.0
            assert (turn is Turn.BACKGROUND) == (background and passed >= SHARE)
        elif background and calm > LINGER + 1e-9:
            assert turn is Turn.BACKGROUND
        elif not background or calm < LINGER - 1e-9:
            assert turn is Turn.NOBODY
        if turn is Turn.BACKGROUND and not can_run:
            turn = Turn.FOREGROUND if foreground else Turn.NOBODY
        if turn is not Turn.NOBODY:
            turns.took(turn, background=background)
            passed = passed + 1 if turn is Turn.FOREGROUND and background else 0


def names(simulation: Simulation, plan: StepPlan) -> set[str]:
    """Whom a step computes something for."""
    sequences = simulation.scheduler._by_id
    return {sequences[row.sequence_id].request.request_id for group in plan.groups for row in group}


def steps(simulation: Simulation, count: int) -> list[str]:
    """A letter for each of the next steps: f of the foreground, b of the background."""
    letters = ""
    for _ in range(count):
        plan = simulation.plan()
        assert plan is not None
        ran = {name[0] for name in names(simulation, plan)}
        assert len(ran) == 1, "both in one step"
        letters += ran.pop()
        simulation.collect()
    return list(letters)


def add_background(simulation: Simulation, name: str = "b", length: int = 8, **options: int) -> None:
    simulation.add(make_request(name, [1] * length, priority=BACKGROUND_PRIORITY, **({"max_tokens": 9} | options)))


def test_a_running_answer_meets_one_step_of_the_background_in_many() -> None:
    simulation = Simulation(make_info(num_blocks=200))
    simulation.add(make_request("f", [2] * 8, max_tokens=3 * SHARE))
    add_background(simulation, max_tokens=40)
    assert steps(simulation, 2 * SHARE + 2) == (["f"] * SHARE + ["b"]) * 2
    simulation.drain()


def test_the_background_does_not_change_what_a_step_of_the_foreground_computes() -> None:
    """Its steps are of the same sizes as without any background."""

    def sizes(background: bool) -> list[list[int]]:
        simulation = Simulation(make_info(num_blocks=400, token_budget=32))
        if background:
            for number in range(6):
                add_background(simulation, f"b{number}", length=40)
            steps(simulation, 3)
        found: list[list[int]] = []
        for number in range(80):
            if number % 12 == 0:
                simulation.add(make_request(f"f{number}", [number] * 50, max_tokens=30))
            found.append(next_of_foreground(simulation))
        return found

    assert sizes(True) == sizes(False)


def next_of_foreground(simulation: Simulation) -> list[int]:
    """The sizes in the next step that is not the background's."""
    while True:
        plan = simulation.plan()
        assert plan is not None
        is_foreground = any(name.startswith("f") for name in names(simulation, plan))
        simulation.collect()
        if is_foreground:
            return [row.num_tokens for group in plan.groups for row in group]


def test_who_arrives_waits_for_one_small_step_at_most() -> None:
    simulation = Simulation(make_info(num_blocks=400, token_budget=64, steps_in_flight=3))
    for number in range(9):
        add_background(simulation, f"b{number}", length=60, max_tokens=30)
    for _ in range(40):
        plan = simulation.plan()
        assert plan is not None
        assert sum(row.num_tokens for group in plan.groups for row in group) <= background_tokens(64, is_calm=True)
        assert simulation.plan() is None, "a second step of the background is under way"
        simulation.collect()
    simulation.plan()
    simulation.add(make_request("f", [2] * 8))
    plan = simulation.plan()
    assert plan is not None
    assert names(simulation, plan) == {"f"}
    simulation.drain()


def test_the_background_begins_when_it_has_been_calm_for_a_while() -> None:
    simulation = Simulation(make_info())
    simulation.add(make_request("f", max_tokens=1))
    add_background(simulation, max_tokens=1)
    assert steps(simulation, 1) == ["f"]
    assert simulation.scheduler.schedule(simulation.clock.now) is not None, "tells the engine that f has ended"
    assert simulation.scheduler.schedule(simulation.clock.now) is None
    assert simulation.scheduler.pause(simulation.clock.now) == LINGER
    simulation.clock.advance(LINGER)
    assert simulation.scheduler.pause(simulation.clock.now) == 0


def test_the_background_gives_up_its_memory() -> None:
    simulation = Simulation(make_info(num_blocks=12, max_num_seqs=8))
    for number in range(3):
        add_background(simulation, f"b{number}", length=4, max_tokens=12)
    steps(simulation, 4)
    simulation.add(make_request("f", [2] * 30, max_tokens=10))
    assert steps(simulation, 10) == ["f"] * 10
    assert simulation.ends["f"].finish_reason is not None
    simulation.drain()


def test_the_background_gives_up_its_places_but_for_one() -> None:
    size = MIN_SEQS_TO_SHARE
    simulation = Simulation(make_info(num_blocks=400, max_num_seqs=size, token_budget=1024))
    for number in range(size):
        add_background(simulation, f"b{number}", max_tokens=3 * SHARE)
    steps(simulation, 2)
    for number in range(2 * size):
        simulation.add(make_request(f"f{number}", [2], max_tokens=2 * SHARE))
    assert steps(simulation, SHARE + 2) == ["f"] * SHARE + ["b", "f"]
    scheduler = simulation.scheduler
    assert (len(scheduler.lanes.foreground.running), len(scheduler.lanes.background.running)) == (size - 1, 1)
    simulation.drain()


def test_a_queue_that_never_empties_does_not_starve_the_background() -> None:
    size = MIN_SEQS_TO_SHARE
    simulation = Simulation(make_info(num_blocks=400, max_num_seqs=size))
    count = 0
    add_background(simulation)
    for _ in range(20 * SHARE):
        while len(simulation.scheduler.queue) < 2 * size:
            simulation.add(make_request(f"f{count}", [2], max_tokens=5))
            count += 1
        simulation.step()
    assert "b" in simulation.ends


def test_accounts_take_turns_in_the_background_too() -> None:
    """One that sends a thousand lines does not keep another's few for last."""
    simulation = Simulation(make_info(num_blocks=400, max_num_seqs=4))
    for number in range(40):
        add_background(simulation, f"b-big-{number}", account="big")  # type: ignore[arg-type]
    simulation.step()
    for number in range(4):
        add_background(simulation, f"b-small-{number}", account="small")  # type: ignore[arg-type]
    while sum(name.startswith("b-small") for name in simulation.ends) < 4:
        simulation.step()
    assert sum(name.startswith("b-big") for name in simulation.ends) <= 12
    simulation.drain()


def test_steps_are_smaller_where_somebody_came_lately() -> None:
    turns, budget = Turns(), 256
    assert background_tokens(budget, is_calm=turns.is_calm(0.0)) == 16, "nobody ever came"
    turns.next(1.0, foreground=True, background=True)
    sizes = [background_tokens(budget, is_calm=turns.is_calm(now)) for now in (1.0, 1.0 + LINGER, 2.9, 1.0 + CALM)]
    assert sizes == [4, 4, 4, 16]
    assert background_tokens(1, is_calm=False) == 1, "never nothing"
