"""The scheduler against an engine that checks every plan (`tests.fakes.PaperEngine`)."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.pace import StepLoad
from batching.scheduler import Scheduler, SchedulerConfig
from engines.types import BACKGROUND_PRIORITY, ErrorCode, FinishReason, GenerationRequest
from tests.fakes import FOREVER, Simulation, make_info, make_request, oracle_token

# --- everything at once, at random

prompts = st.builds(
    lambda family, length, tail: ([family] * length + tail)[:60],
    st.integers(0, 2),
    st.integers(1, 40),
    st.lists(st.integers(0, 1), max_size=6),
)


@st.composite
def requests(draw: st.DrawFn) -> Callable[[str, float], GenerationRequest]:
    prompt, max_tokens = draw(prompts), draw(st.integers(1, 30))
    options = {
        "stop": draw(st.sets(st.integers(0, 15), max_size=2)),
        "min_tokens": draw(st.integers(0, 5)),
        "account": draw(st.sampled_from("abc")),
        "priority": draw(st.sampled_from([0, 1, 2, BACKGROUND_PRIORITY, BACKGROUND_PRIORITY + 1])),
        "salt": draw(st.sampled_from([b"", b"x", b"y"])),
        "num_begun": draw(st.sampled_from([0, 0, 1, 12])),
        "logprobs": draw(st.sampled_from([None, 0])),
        "prompt_logprobs": draw(st.sampled_from([None, None, 0])),
    }
    patience = draw(st.sampled_from([0.0, 3.0, FOREVER]))
    return lambda request_id, now: make_request(
        request_id, prompt, max_tokens=max_tokens, arrival=now, deadline=now + patience, **options
    )


def siblings(
    make: Callable[[str, float], GenerationRequest], size: int
) -> Callable[[str, float], list[GenerationRequest]]:
    """A group: as many requests with the same prompt."""
    return lambda name, now: [replace(make(f"{name}.{i}", now), group=name) for i in range(size)]


groups = st.builds(siblings, requests(), st.integers(1, 4))
actions = st.one_of(
    groups,
    st.integers(0, 30).map(lambda index: ("abort", index)),
    st.sampled_from(["plan", "collect", "step", "step", "tick", "starve"]),
)


def linear(fixed: float, decode: float, prefill: float) -> Callable[[StepLoad], float]:
    return lambda load: fixed + decode * load.num_decodes + prefill * load.num_prefill_tokens


@settings(max_examples=250, deadline=None)
@given(
    script=st.lists(actions, max_size=80),
    num_blocks=st.integers(3, 40),
    token_budget=st.integers(1, 70),
    max_num_seqs=st.integers(1, 6),
    steps_in_flight=st.integers(1, 3),
    max_queue=st.sampled_from([2, 1000]),
    queue_timeout=st.sampled_from([2.0, FOREVER]),
    max_waste=st.sampled_from([0.0, 0.1, 1.0]),
    lazy=st.booleans(),
    step_seconds=st.sampled_from([None, (0.1, 0.01, 0.001), (0.01, 0.0, 0.01), (0.001, 0.0, 0.1)]),
)
def test_every_request_ends_once_with_the_right_answer(
    script,
    num_blocks,
    token_budget,
    max_num_seqs,
    steps_in_flight,
    max_queue,
    queue_timeout,
    max_waste,
    lazy,
    step_seconds,
):
    """`step_seconds`: of any step, for each decode in it, for each token of a prompt."""
    info = make_info(
        num_blocks=num_blocks, token_budget=token_budget, max_num_seqs=max_num_seqs, steps_in_flight=steps_in_flight
    )
    simulation = Simulation(info, SchedulerConfig(max_queue, queue_timeout, max_waste), lazy=lazy)
    if step_seconds is not None:
        simulation.seconds = linear(*step_seconds)
    for number, action in enumerate(script):
        if callable(action):
            for request in action(f"r{number}", simulation.clock.now):
                simulation.add(request)
        elif isinstance(action, tuple):
            if ids := list(simulation.requests):
                simulation.abort(ids[action[1] % len(ids)])
        elif action == "tick":
            simulation.clock.advance(1.5)
        else:
            getattr(simulation, action)()
    simulation.drain()


@pytest.mark.parametrize("shortage", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(24))
def test_long_runs_under_pressure(seed, shortage):
    """Busier than what hypothesis draws: most sequences are preempted, many share prefixes, some are aborted."""
    rng = random.Random(seed)
    info = make_info(
        num_blocks=rng.choice([12, 20, 40]),
        token_budget=rng.choice([4, 16, 64]),
        max_num_seqs=rng.choice([3, 6, 10]),
        steps_in_flight=rng.choice([1, 2, 3]),
    )
    simulation = Simulation(info, SchedulerConfig(queue_timeout=rng.choice([20, FOREVER])), lazy=rng.random() < 0.5)
    if seed % 2:
        simulation.seconds = lambda load: rng.lognormvariate(0, 0.5) * linear(0.01, 0.001, 0.005)(load)
    for number in range(120):
        request = random_request(rng, f"r{number}", simulation)
        for i in range(rng.choice([1, 1, 3])):
            simulation.add(replace(request, request_id=f"r{number}.{i}", group=f"r{number}"))
        for _ in range(rng.randrange(4)):
            simulation.step()
            simulation.clock.advance(1)
        if rng.random() < 0.2:
            simulation.abort(rng.choice(list(simulation.requests)))
        if rng.random() < shortage:
            simulation.starve()
    simulation.drain()


def random_request(rng: random.Random, request_id: str, simulation: Simulation) -> GenerationRequest:
    """Often one that goes on from another's answer."""
    prompt = [rng.randrange(3)] * rng.randrange(1, 30)
    if simulation.answers and rng.random() < 0.5:
        before = rng.choice(list(simulation.answers))
        prompt = simulation.requests[before].prompt_token_ids + simulation.answers[before] + prompt[:3]
    return make_request(
        request_id,
        prompt[:45],
        max_tokens=rng.randrange(1, 40),
        num_begun=rng.choice([0, 0, 5]),
        stop=rng.sample(range(16), rng.randrange(2)),
        account=rng.choice("ab"),
        priority=rng.choice([0, 1, BACKGROUND_PRIORITY]),
        salt=rng.choice([b"", b"x"]),
        arrival=simulation.clock.now,
        logprobs=rng.choice([None, 0]),
        prompt_logprobs=rng.choice([None, None, 0]),
    )


# --- endings


def test_a_lonely_sequence_may_fill_the_whole_memory():
    simulation = Simulation(make_info(num_blocks=8, max_model_len=1000, steps_in_flight=2))
    assert simulation.scheduler.max_model_len == 32
    simulation.add(make_request("full", range(31), max_tokens=99))
    simulation.add(make_request("one", [1], max_tokens=99))
    simulation.drain()
    assert len(simulation.answers["full"]) == 1
    assert len(simulation.answers["one"]) == 31


@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [([], 1), (range(32), 1), ([256], 1), ([-1], 1), ([2**70], 1), ([1], 0), ([1], -5)]
)
def test_what_can_not_run_is_refused(prompt, max_tokens):
    simulation = Simulation(make_info(max_model_len=32))
    refusal = simulation.add(make_request("bad", prompt, max_tokens=max_tokens))
    assert refusal.error.code is ErrorCode.INVALID
    assert not simulation.scheduler.has_work


def test_a_full_queue_refuses_with_a_time_to_come_back():
    simulation = Simulation(make_info(max_num_seqs=1), SchedulerConfig(max_queue=2))
    assert [simulation.add(make_request(f"r{i}")) for i in range(2)] == [None, None]
    refusal = simulation.add(make_request("late"))
    assert refusal.error.code is ErrorCode.OVERLOADED
    assert refusal.error.retry_after_ms > 0
    simulation.drain()


def test_waiting_in_vain_ends_in_the_error_that_says_so():
    simulation = Simulation(make_info(max_num_seqs=1), SchedulerConfig(queue_timeout=5))
    now = simulation.clock.now
    simulation.add(make_request("runs", max_tokens=20, arrival=now))
    simulation.step()
    simulation.add(make_request("patient", arrival=now))
    simulation.add(make_request("hurried", arrival=now, deadline=now + 2))
    simulation.clock.advance(2)
    simulation.step()
    assert simulation.ends["hurried"].error.code is ErrorCode.DEADLINE
    assert "patient" not in simulation.ends
    simulation.clock.advance(3)
    simulation.step()
    assert simulation.ends["patient"].error.code is ErrorCode.QUEUE_TIMEOUT
    assert simulation.ends["patient"].error.retry_after_ms >= 1000
    simulation.drain()
    assert simulation.ends["runs"].finish_reason is FinishReason.LENGTH


def test_a_stop_token_ends_the_answer_and_counts():
    stop = oracle_token([1, 2, 3], 2)
    simulation = Simulation(make_info())
    simulation.add(make_request("stops", max_tokens=50, stop=[stop]))
    simulation.drain()
    assert simulation.ends["stops"].finish_reason is FinishReason.STOP
    assert simulation.answers["stops"][-1] == stop


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_an_abort_frees_everything_at_once(steps_in_flight):
    simulation = Simulation(make_info(steps_in_flight=steps_in_flight))
    simulation.add(make_request("leaves", range(20), max_tokens=50))
    simulation.step()
    simulation.step()
    delta = simulation.abort("leaves")
    assert delta.finish_reason is FinishReason.ABORT
    assert delta.computed_tokens == 20
    assert simulation.scheduler.pool.num_used == 0
    assert not simulation.scheduler.has_work
    assert simulation.abort("leaves") is None
    assert simulation.scheduler.abort("never heard of") is None
    while simulation.in_flight:
        simulation.collect()
    assert simulation.plan().finished
    simulation.collect()
    simulation.drain()


def test_an_abort_tells_how_much_of_the_prompt_was_computed_and_when_it_began():
    simulation = Simulation(make_info(token_budget=8))
    simulation.add(make_request("leaves", range(20)))
    assert simulation.scheduler.schedule(3.0) is not None
    delta = simulation.scheduler.abort("leaves")
    assert (delta.computed_tokens, delta.queue_seconds) == (8, 3.0)
    simulation.add(make_request("waits"))
    delta = simulation.abort("waits")
    assert (delta.computed_tokens, delta.queue_seconds) == (0, 0)


def run_to_preemption(simulation: Simulation) -> None:
    for _ in range(50):
        if simulation.scheduler.lanes.num_preemptions:
            return
        simulation.step()
    pytest.fail("memory was not scarce")


def preempted_simulation(**changes: int) -> Simulation:
    """`old` has taken the blocks of `young`, whose answer had begun."""
    simulation = Simulation(make_info(num_blocks=6, block_size=4, **changes))
    simulation.add(make_request("old", [1] * 8, max_tokens=14))
    simulation.add(make_request("young", [2] * 8, max_tokens=14))
    run_to_preemption(simulation)
    return simulation


def test_preemption_takes_from_the_latest_and_loses_nothing():
    simulation = preempted_simulation()
    running = simulation.scheduler.snapshot()
    assert (running.running, running.waiting) == (2, 0)
    assert [s.request.request_id for s in simulation.scheduler.lanes.foreground.running] == ["old"]
    simulation.drain()  # compares the answers


def test_preemption_takes_from_the_least_urgent_first():
    simulation = Simulation(make_info(num_blocks=8))
    simulation.add(make_request("batch", [1] * 8, max_tokens=14, priority=1))
    simulation.step()
    simulation.add(make_request("urgent", [2] * 8, max_tokens=14, priority=0))
    run_to_preemption(simulation)
    assert [s.request.request_id for s in simulation.scheduler.lanes.foreground.running] == ["urgent"]
    simulation.drain()


def test_the_urgent_do_not_wait_behind_the_preempted():
    simulation = Simulation(make_info(num_blocks=8))
    simulation.add(make_request("batch-1", [1] * 8, max_tokens=14, priority=1))
    simulation.add(make_request("batch-2", [2] * 8, max_tokens=14, priority=1))
    run_to_preemption(simulation)
    simulation.add(make_request("urgent", [3], max_tokens=2))
    simulation.step()
    assert "urgent" in {s.request.request_id for s in simulation.scheduler.lanes.foreground.running}
    simulation.drain()


def test_little_is_computed_twice_when_memory_is_short():
    rng = random.Random(2)
    simulation = Simulation(make_info(num_blocks=150, max_num_seqs=32), SchedulerConfig(queue_timeout=FOREVER))
    needed = 0
    for number in range(100):
        prompt, max_tokens = [rng.randrange(256) for _ in range(rng.randrange(10, 50))], rng.randrange(10, 80)
        simulation.add(make_request(f"r{number}", prompt, max_tokens=max_tokens))
        needed += len(prompt) + max_tokens - 1
    simulation.drain()
    assert simulation.scheduler.lanes.num_preemptions
    assert simulation.engine.computed_tokens < 1.2 * needed


def test_of_one_class_the_preempted_come_before_the_queue():
    simulation = preempted_simulation()
    for number in range(3):
        simulation.add(make_request(f"late{number}", [number + 3] * 9, max_tokens=2))
    simulation.drain()
    assert list(simulation.ends)[:2] == ["old", "young"]


def test_of_the_preempted_the_urgent_come_first():
    simulation = Simulation(make_info())
    for name, priority in [("batch", 1), ("normal", 0), ("later", 0)]:
        simulation.add(make_request(name, priority=priority))
    simulation.step()
    for sequence in list(simulation.scheduler.lanes.foreground.running):
        simulation.scheduler.lanes.preempt(sequence)
    assert [s.request.request_id for s in simulation.scheduler.lanes.foreground.preempted] == [
        "normal",
        "later",
        "batch",
    ]
    simulation.drain()


def test_an_engine_is_not_asked_to_preempt_what_it_was_told_to_drop():
    simulation = preempted_simulation(steps_in_flight=2)
    victim = simulation.scheduler.lanes.foreground.preempted[0].sequence_id
    simulation.scheduler.lanes.newly_preempted.append(victim)  # as after a schedule() that planned nothing
    simulation.abort("young")
    plan = simulation.plan()
    assert victim in plan.finished
    assert victim not in plan.preempted


def test_aborting_a_preempted_answer_counts_its_prompt():
    assert preempted_simulation().abort("young").computed_tokens == 8


# --- what runs when


def test_decodes_go_on_while_a_long_prompt_is_worked_off():
    simulation = Simulation(make_info(max_model_len=8192, num_blocks=4000, token_budget=256))
    for number in range(5):
        simulation.add(make_request(f"chat{number}", [number] * 10, max_tokens=100))
    simulation.step()
    simulation.add(make_request("long", [i % 7 for i in range(4000)], max_tokens=3))
    steps = 0
    while not simulation.answers["long"]:
        before = {number: len(simulation.answers[f"chat{number}"]) for number in range(5)}
        simulation.step()
        steps += 1
        assert all(len(simulation.answers[f"chat{n}"]) == before[n] + 1 for n in range(5))
    assert steps == -(-4000 // 251), "the budget that decodes leave is used to the last token"
    simulation.drain()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_late_request_joins_at_the_next_planned_step(steps_in_flight):
    simulation = Simulation(make_info(steps_in_flight=steps_in_flight))
    simulation.add(make_request("early", max_tokens=40))
    simulation.step()
    simulation.add(make_request("late", [9] * 5, max_tokens=40))
    plan = simulation.plan()
    assert {row.num_tokens for group in plan.groups for row in group} == {1, 5}


def test_a_finished_sequence_leaves_at_once_and_the_next_takes_its_place():
    simulation = Simulation(make_info(max_num_seqs=1))
    simulation.add(make_request("first", max_tokens=2))
    simulation.add(make_request("second", [7] * 4, max_tokens=2))
    simulation.step()
    simulation.step()
    plan = simulation.plan()
    assert plan.finished == [0]
    assert [new.sequence_id for new in plan.new] == [1]
    simulation.collect()
    simulation.drain()


def test_urgent_requests_start_first():
    simulation = Simulation(make_info(max_num_seqs=1))
    for name, priority in [("batch", 5), ("normal", 0), ("urgent", -1)]:
        simulation.add(make_request(name, priority=priority))
    simulation.drain()
    assert list(simulation.ends) == ["urgent", "normal", "batch"]


def test_a_budget_below_the_number_of_sequences_starves_nobody():
    simulation = Simulation(make_info(max_num_seqs=8, token_budget=2))
    for number in range(8):
        simulation.add(make_request(f"r{number}", [number] * 9, max_tokens=10))
    assert simulation.drain() < 60


def test_overlapped_steps_compute_one_token_too_many_at_most():
    simulation = Simulation(make_info(steps_in_flight=2))
    simulation.add(make_request("r", max_tokens=50, stop=range(16)))
    simulation.drain()
    assert simulation.engine.computed_tokens == 4, "three of the prompt, one planned before the stop was seen"


def test_no_more_tokens_are_planned_than_may_be_sampled():
    simulation = Simulation(make_info(steps_in_flight=3))
    simulation.add(make_request("r", max_tokens=5))
    simulation.drain()
    assert simulation.engine.computed_tokens == 3 + 5 - 1


# --- the prefix cache


def test_a_repeated_prompt_is_cached_but_for_its_last_tokens():
    simulation = Simulation(make_info(block_size=4))
    for name, length in [("a", 12), ("b", 12), ("c", 13)]:
        simulation.add(make_request(name, range(length), max_tokens=1))
        simulation.drain()
    cached = {name: delta.cached_tokens for name, delta in simulation.first.items()}
    assert cached == {"a": 0, "b": 8, "c": 12}, "one token is always computed: its logits choose the next"
    assert simulation.engine.computed_tokens == 12 + 4 + 1
    assert simulation.scheduler.stats.cached_tokens == 20
    assert simulation.scheduler.queue.served["a"] == 17 + 2 * 3
    assert simulation.scheduler.stats.prefill_tokens == 17


def test_the_next_turn_finds_the_answer_in_the_cache():
    simulation = Simulation(make_info(block_size=4))
    simulation.add(make_request("turn1", range(10), max_tokens=11))
    simulation.drain()
    history = [*range(10), *simulation.answers["turn1"]]
    simulation.add(make_request("turn2", [*history, 77, 78], max_tokens=2))
    simulation.drain()
    assert simulation.first["turn2"].cached_tokens == 20, "of 21 known tokens the last was never computed"


def test_requests_that_run_together_share_what_is_ready():
    simulation = Simulation(make_info(block_size=4, token_budget=64))
    simulation.add(make_request("first", range(20), max_tokens=30))
    simulation.step()
    simulation.add(make_request("second", range(20), max_tokens=30))
    simulation.step()
    assert simulation.first["second"].cached_tokens == 16
    assert simulation.scheduler.pool.num_used < 2 * 6
    simulation.drain()


def add_group(simulation: Simulation, size: int, prompt=range(10, 31), **fields) -> None:
    for index in range(size):
        simulation.add(make_request(f"g{index}", prompt, group="g", **fields))


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("token_budget", [64, 8])
def test_a_group_s_prompt_is_computed_once(steps_in_flight, token_budget):
    simulation = Simulation(make_info(block_size=4, steps_in_flight=steps_in_flight, token_budget=token_budget))
    add_group(simulation, 5, max_tokens=6)
    simulation.drain()
    assert [simulation.first[f"g{index}"].cached_tokens for index in range(5)] == [0, 20, 20, 20, 20]
    assert simulation.engine.computed_tokens == 21 + 4 * 1 + 5 * 5


def test_those_who_wait_for_a_group_s_prompt_are_overtaken():
    simulation = Simulation(make_info(block_size=4, token_budget=8))
    add_group(simulation, 2)
    simulation.add(make_request("other", [7] * 3, max_tokens=2))
    simulation.drain()
    assert next(iter(simulation.ends)) == "other"


def test_a_short_prompt_leaves_nothing_to_wait_for():
    simulation = Simulation(make_info(block_size=4))
    add_group(simulation, 3, prompt=range(4))
    plan = simulation.plan()
    assert sum(map(len, plan.groups)) == 3
    simulation.drain()


def test_nobody_waits_for_one_that_was_aborted():
    simulation = Simulation(make_info(block_size=4, token_budget=8))
    add_group(simulation, 3)
    simulation.step()
    simulation.abort("g0")
    simulation.drain()
    assert [simulation.ends[f"g{index}"].finish_reason for index in (1, 2)] == [FinishReason.LENGTH] * 2
    assert simulation.engine.computed_tokens == 21 + 1 + 2 * 3, "the second found what the first had computed"


def test_a_group_whose_first_lost_its_memory_goes_on():
    simulation = Simulation(make_info(block_size=4, token_budget=8))
    add_group(simulation, 3)
    simulation.step()
    simulation.scheduler.lanes.preempt(simulation.scheduler.lanes.foreground.running[0])
    simulation.drain()
    assert [len(simulation.answers[f"g{index}"]) for index in range(3)] == [4] * 3


def test_who_waits_for_a_group_s_prompt_does_not_wait_in_vain():
    """However long that takes; but not beyond its deadline."""
    simulation = Simulation(make_info(block_size=4, token_budget=8), SchedulerConfig(queue_timeout=5))
    add_group(simulation, 2, prompt=range(10, 90), arrival=simulation.clock.now)
    hurried = make_request("hurried", range(10, 90), group="g", arrival=simulation.clock.now, deadline=12)
    simulation.add(hurried)
    for _ in range(10):
        simulation.step()
        simulation.clock.advance(4)
    simulation.drain()
    assert simulation.ends["hurried"].error.code is ErrorCode.DEADLINE
    assert [simulation.ends[f"g{index}"].finish_reason for index in range(2)] == [FinishReason.LENGTH] * 2


def test_a_group_that_is_continued_elsewhere():
    simulation = Simulation(make_info(block_size=4))
    add_group(simulation, 3, max_tokens=9, num_begun=4, priority=-1)
    simulation.drain()
    assert [len(simulation.answers[f"g{index}"]) for index in range(3)] == [5] * 3


def test_what_is_told_of_a_prompt_is_computed_and_not_read_from_the_cache():
    simulation = Simulation(make_info(block_size=4, token_budget=8))
    for name in ("first", "again"):
        simulation.add(make_request(name, range(20), max_tokens=2, prompt_logprobs=0))
        simulation.drain()
    assert [simulation.first[name].cached_tokens for name in ("first", "again")] == [0, 0]
    assert [len(simulation.prompt_logprobs[name]) for name in ("first", "again")] == [19, 19]
    simulation.add(make_request("other", range(20), max_tokens=2))
    simulation.drain()
    assert simulation.first["other"].cached_tokens == 16


def test_no_message_carries_what_is_told_of_a_whole_prompt():
    simulation = Simulation(make_info(block_size=4, token_budget=8))
    simulation.add(make_request("long", range(80), max_tokens=2, prompt_logprobs=0))
    sizes = []
    while not simulation.answers["long"]:
        before = len(simulation.prompt_logprobs["long"])
        simulation.step()
        sizes.append(len(simulation.prompt_logprobs["long"]) - before)
    assert sizes == [8] * 9 + [7]


def test_tenants_share_nothing():
    simulation = Simulation(make_info(block_size=4))
    for salt in (b"x", b"y"):
        simulation.add(make_request(salt.decode(), range(20), max_tokens=1, salt=salt))
        simulation.drain()
    assert simulation.first["y"].cached_tokens == 0


def test_the_first_delta_alone_tells_of_the_start():
    simulation = Simulation(make_info(max_num_seqs=1))
    now = simulation.clock.now
    simulation.add(make_request("first", max_tokens=3, arrival=now))
    simulation.add(make_request("second", max_tokens=3, arrival=now))
    for _ in range(3):
        simulation.step()
        simulation.clock.advance(1.0)
    simulation.drain()
    assert simulation.first["second"].queue_seconds == pytest.approx(3.0)
    assert simulation.ends["second"].queue_seconds == 0.0


# --- what another engine began


@pytest.mark.parametrize("num_begun", [1, 7, 14])
@pytest.mark.parametrize(("min_tokens", "max_tokens"), [(15, 20), (0, 15)])
def test_it_goes_on_and_counts_all_its_tokens(num_begun, min_tokens, max_tokens):
    """To its fifteenth, by whichever rule."""
    simulation = Simulation(make_info())
    stop = range(16) if min_tokens else ()
    request = make_request("r", max_tokens=max_tokens, min_tokens=min_tokens, stop=stop, num_begun=num_begun)
    simulation.add(request)
    simulation.drain()
    whole = [oracle_token(request.prompt_token_ids, index) for index in range(15)]
    assert request.output_token_ids + simulation.answers["r"] == whole
    assert simulation.ends["r"].finish_reason is (FinishReason.STOP if stop else FinishReason.LENGTH)


def test_its_tokens_are_looked_for_in_the_cache_and_kept_there():
    simulation = Simulation(make_info(block_size=4))
    begun = make_request("r", range(10), max_tokens=30, num_begun=13)
    for request_id, cached in (("r", 0), ("again", 20)):
        simulation.add(replace(begun, request_id=request_id))
        simulation.drain()
        assert simulation.first[request_id].cached_tokens == cached
    assert simulation.scheduler.queue.served["a"] == (23 + 3) + 2 * 2 * 17


def test_a_full_queue_takes_it_all_the_same_and_first():
    """Its client is reading already, and no more can come than another replica could run."""
    simulation = Simulation(make_info(max_num_seqs=1), SchedulerConfig(max_queue=1))
    simulation.add(make_request("runs", max_tokens=3))
    simulation.step()
    simulation.add(make_request("waits"))
    assert simulation.add(make_request("refused")) is not None
    assert simulation.add(make_request("begun", max_tokens=9, num_begun=4, priority=-1)) is None
    simulation.drain()
    assert list(simulation.ends) == ["refused", "runs", "begun", "waits"]


# --- nothing grows with traffic


def test_nothing_is_kept_of_requests_that_have_ended():
    simulation = Simulation(make_info(num_blocks=64))
    scheduler: Scheduler = simulation.scheduler
    for number in range(300):
        simulation.add(make_request(f"r{number}", [number % 256] * 9, max_tokens=2))
        simulation.step()
        if number % 3 == 0 and f"r{number}" not in simulation.ends:
            simulation.abort(f"r{number}")
    simulation.drain()
    assert not scheduler.lanes.foreground.sequences
    for name in ("_by_request", "_by_id", "_new", "_finished"):
        assert not getattr(scheduler, name), name
    assert not scheduler.lanes.newly_preempted
    assert len(scheduler.pool._by_hash) <= 64
    assert len(scheduler.queue._expiries) <= 64


def test_accounts_are_served_alike_whatever_the_size_of_their_requests():
    """Input weighs 1, output 2: the account with small requests gets more of them served."""
    config = SchedulerConfig(max_queue=10_000, queue_timeout=FOREVER)
    simulation = Simulation(make_info(max_num_seqs=4, num_blocks=400), config)
    for number in range(100):
        simulation.add(make_request(f"big{number}", [number] * 60, max_tokens=20, account="big", salt=b"b"))
        for part in range(6):
            prompt = [number, part, *[0] * 10]
            simulation.add(make_request(f"small{number}-{part}", prompt, max_tokens=8, account="small", salt=b"s"))
    largest = 60 + 2 * 20
    for _ in range(300):
        simulation.step()
        assert abs(received(simulation, "big") - received(simulation, "small")) <= 4 * largest
    assert received(simulation, "big") > 20 * largest
    assert simulation.scheduler.queue.peek() is not None, "both still wait"


def received(simulation: Simulation, account: str) -> int:
    started = [i for i, answer in simulation.answers.items() if answer and simulation.requests[i].account == account]
    return sum(len(simulation.requests[i].prompt_token_ids) + 2 * len(simulation.answers[i]) for i in started)
