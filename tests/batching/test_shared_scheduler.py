"""Sequences and texts at one engine: turns that starve nobody, and every request ends once, as it would alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batching.scheduler import Scheduler, SchedulerConfig
from batching.shared_scheduler import SharedScheduler
from batching.turns import LINGER, SHARE, Turn, TurnTaking
from engines.steps import StepPlan
from engines.types import (
    BACKGROUND_PRIORITY,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    OutputDelta,
    SamplingParams,
    TextSpan,
    VectorInfo,
)
from tests.fakes import FOREVER, PaperEngine, make_info, make_request, oracle_answer

INFO = replace(make_info(num_blocks=60, token_budget=32, max_num_seqs=4), vectors=VectorInfo(2))


class Kind:
    """Work that a script sets. `can_run`: whether a step of it fits, once it is its turn."""

    def __init__(self) -> None:
        self.wanted: dict[Turn, bool] = {Turn.FOREGROUND: False, Turn.BACKGROUND: False}
        self.can_run = True
        self.background_is_under_way = False

    def wants(self, turn: Turn) -> bool:
        return self.wanted[turn]

    def plan(self, turn: Turn, now: float, *, is_calm: bool) -> tuple[Kind, Turn] | None:
        return (self, turn) if self.can_run else None


FLAGS = st.tuples(st.booleans(), st.booleans(), st.booleans())


@given(st.lists(st.tuples(FLAGS, FLAGS, st.floats(0, 2 * LINGER)), max_size=200))
def test_of_two_kinds_neither_waits_for_two_steps_of_the_other(script: list[Any]) -> None:
    """Within one sort of turn: the background has its own rule against the foreground."""
    kinds = [Kind(), Kind()]
    turns: TurnTaking[tuple[Kind, Turn]] = TurnTaking(kinds)
    passed: Counter[tuple[Kind, Turn]] = Counter()
    now = 0.0
    for first, second, seconds in script:
        now += seconds
        for kind, (foreground, background, can_run) in zip(kinds, (first, second), strict=True):
            kind.wanted = {Turn.FOREGROUND: foreground, Turn.BACKGROUND: background}
            kind.can_run = can_run
        plan = turns.next_plan(now)
        ready = [kind for kind in kinds if kind.can_run and kind.wanted[Turn.FOREGROUND]]
        if plan is None:
            assert not ready, "the engine rests while there is work"
            continue
        chosen, turn = plan
        assert chosen.can_run
        assert chosen.wanted[turn]
        for kind in kinds:
            could = kind.can_run and kind.wanted[turn]
            passed[kind, turn] = passed[kind, turn] + 1 if could and kind is not chosen else 0
            assert passed[kind, turn] <= 1


def test_the_background_of_both_kinds_gets_its_share() -> None:
    kinds = [Kind(), Kind()]
    turns: TurnTaking[tuple[Kind, Turn]] = TurnTaking(kinds)
    kinds[0].wanted[Turn.FOREGROUND] = True  # of one kind alone, so that it takes every turn of the foreground
    for kind in kinds:
        kind.wanted[Turn.BACKGROUND] = True
    plans = [turns.next_plan(0.0) for _ in range(4 * (SHARE + 1))]
    background = [plan[0] for plan in plans if plan and plan[1] is Turn.BACKGROUND]
    assert background == [kinds[0], kinds[1]] * 2
    kinds[0].background_is_under_way = True
    assert all(plan and plan[1] is Turn.FOREGROUND for plan in (turns.next_plan(0.0) for _ in range(3 * SHARE)))


def texts(name: str, lengths: list[int], **fields: Any) -> GenerationRequest:
    """Text i is `lengths[i]` times the token i."""
    ids = [i for i, length in enumerate(lengths) for _ in range(length)]
    spans = [TextSpan(length, length) for length in lengths]
    given = {"account": "a", "arrival": 0.0, "deadline": FOREVER} | fields
    return GenerationRequest(name, prompt_token_ids=ids, sampling=SamplingParams(max_tokens=0), texts=spans, **given)


class Simulation:
    """A SharedScheduler, and an engine on paper that has one step at a time."""

    def __init__(self, config: SchedulerConfig | None = None) -> None:
        self.scheduler = SharedScheduler(INFO, config or SchedulerConfig())
        self.engine = PaperEngine(INFO)
        self.now = 0.0
        self.tokens: dict[str, list[int]] = {}
        self.vectors: dict[str, dict[int, bytes]] = {}
        self.ends: dict[str, OutputDelta] = {}

    def add(self, request: GenerationRequest) -> None:
        refusal = self.scheduler.add(request, self.now)
        self.take([refusal] if refusal else [])

    def abort(self, request_id: str) -> None:
        delta = self.scheduler.abort(request_id)
        assert (delta is None) == (request_id in self.ends)
        self.take([delta] if delta else [])

    def step(self) -> str:
        """What was computed: s for sequences, t for texts, or nothing."""
        self.take(self.scheduler.expire(self.now))
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            self.now += self.scheduler.pause(self.now) or 0.0
            return ""
        if isinstance(plan, StepPlan):
            self.take(self.scheduler.update(plan, self.engine.execute(plan)))
            return "s" if plan.groups else ""
        size = len(plan.rows) * max(len(row.token_ids) for row in plan.rows)
        assert len(plan.rows) == 1 or size <= INFO.token_budget
        self.take(self.scheduler.update(plan, [bytes([row.token_ids[0], len(row.token_ids)]) for row in plan.rows]))
        return "t"

    def drain(self) -> None:
        while self.step():
            pass
        snapshot = self.scheduler.snapshot()
        assert (snapshot.running, snapshot.waiting, snapshot.kv_blocks_used) == (0, 0, 0)

    def take(self, deltas: list[OutputDelta]) -> None:
        self.scheduler.check_integrity()
        for delta in deltas:
            assert delta.request_id not in self.ends, "something came after the last delta"
            self.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
            self.vectors.setdefault(delta.request_id, {}).update(delta.vectors)
            if delta.finish_reason is not None:
                self.ends[delta.request_id] = delta


def test_steps_and_batches_alternate() -> None:
    simulation = Simulation()
    simulation.add(make_request("s", max_tokens=6))
    simulation.add(texts("t", [30] * 4))
    assert [simulation.step() for _ in range(10)] == list("ststststss")
    simulation.drain()
    assert simulation.vectors["t"] == {i: bytes([i, 30]) for i in range(4)}


def test_texts_in_the_background_do_not_pass_a_running_answer() -> None:
    simulation = Simulation()
    simulation.add(texts("t", [4] * 200, priority=BACKGROUND_PRIORITY))
    simulation.add(make_request("s", max_tokens=2 * SHARE))
    assert "".join(simulation.step() for _ in range(2 * SHARE + 1)) == ("s" * SHARE + "t") + "s" * SHARE
    simulation.now += LINGER + 1e-6
    assert simulation.step() in ("", "t"), "the end of the answer is told to the engine first"
    simulation.drain()
    assert simulation.ends["t"].finish_reason is FinishReason.STOP


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_every_request_ends_once_and_answers_are_those_without_texts(numbers: random.Random) -> None:
    simulation = Simulation(SchedulerConfig(max_queue=6, queue_timeout=20))
    requests: dict[str, GenerationRequest] = {}
    for number in range(40):
        name, account = f"r{number}", f"a{number % 3}"
        priority = numbers.choice([0, 0, BACKGROUND_PRIORITY])
        options: dict[str, Any] = {"account": account, "arrival": simulation.now, "priority": priority}
        if numbers.random() < 0.5:
            requests[name] = texts(name, [numbers.randint(1, 60) for _ in range(numbers.randint(1, 6))], **options)
        else:
            prompt = [numbers.randrange(9) for _ in range(numbers.randint(1, 60))]
            requests[name] = make_request(name, prompt, max_tokens=numbers.randint(1, 12), **options)
        simulation.add(requests[name])
        if numbers.random() < 0.2:
            simulation.abort(numbers.choice(list(requests)))
        for _ in range(numbers.randint(0, 6)):
            simulation.step()
        simulation.now += numbers.random()
    while simulation.ends.keys() != requests.keys():
        simulation.step()
    simulation.drain()
    for name, request in requests.items():
        reason = simulation.ends[name].finish_reason
        if reason in (FinishReason.ABORT, FinishReason.ERROR):
            continue
        if request.texts:
            expected = {i: bytes([i, span.num_tokens]) for i, span in enumerate(request.texts)}
            assert simulation.vectors[name] == expected
        else:
            assert (simulation.tokens[name], reason) == oracle_answer(request, INFO.max_model_len)


def test_each_kind_has_a_queue_of_its_own() -> None:
    simulation = Simulation(SchedulerConfig(max_queue=1))
    for name in ("s1", "s2"):
        simulation.add(make_request(name))
    for name in ("t1", "t2"):
        simulation.add(texts(name, [3]))
    errors = {name: end.error.code for name, end in simulation.ends.items() if end.error}
    assert errors == {"s2": ErrorCode.OVERLOADED, "t2": ErrorCode.OVERLOADED}
    assert simulation.scheduler.snapshot().waiting == 2


def test_an_engine_without_embeddings_refuses_texts() -> None:
    for scheduler in (Scheduler(make_info(), SchedulerConfig()), SharedScheduler(make_info(), SchedulerConfig())):
        delta = scheduler.add(texts("t", [3]), 0.0)
        assert delta is not None
        assert delta.error is not None
        assert delta.error.message == "This engine has no embeddings of a generating model."
