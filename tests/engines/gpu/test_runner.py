"""The GPU path's runner, one step ahead of what is known, chooses the CPU path's tokens. Without a GPU, torch's CPU is
the device, plain torch attends, and nothing is captured; its batches are padded to their buckets all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batching.scheduler import Scheduler, SchedulerConfig
from engines.constraint import MatcherSource
from engines.steps import NewSequence, ScheduledSequence, StepPlan, StepResult
from engines.torch import loader
from engines.torch.gpu.kv_cache import PagedMemory
from engines.torch.gpu.reference import ReferenceAttention
from engines.torch.gpu.runner import GpuRunner, LaunchedStep
from engines.types import EngineInfo, FinishReason, GenerationRequest, Grammar, GrammarKind, SamplingParams

CPU = torch.device("cpu")
PROMPT = [(7 * i) % 150 + 2 for i in range(40)]
MODELS = ["llama", "qwen2_window", "qwen3", "gemma2", "gpt_oss", "deepseek_v3", "gpt2"]


class Ahead:
    """A step engine over the runner: each step is read only when the one after the next is launched."""

    def __init__(self, folder: Path, max_num_seqs: int = 64, num_blocks: int = 200, grammars: Any = None) -> None:
        loaded = loader.load(str(folder), "float32", CPU)
        self.memory = PagedMemory(loaded.layers, num_blocks, 16, 2 * max_num_seqs, 256, torch.float32, CPU)
        for layer in self.memory.layers:
            layer.keys.fill_(float("nan"))  # what nobody has written must not matter
            layer.values.fill_(float("nan"))
        source: MatcherSource | None = grammars
        attention = ReferenceAttention(self.memory)
        self.runner = GpuRunner(loaded.model, self.memory, attention, loaded.vocab_size, max_num_seqs, source)
        self.info = EngineInfo(256, max_num_seqs, loaded.vocab_size, 16, num_blocks, 64, 2, tells_logprobs=True)
        self.waiting: list[tuple[LaunchedStep, Future[StepResult]]] = []

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        self.waiting.append((self.runner.launch(plan), future))
        self.runner.check_integrity()
        if len(self.waiting) > 1:
            self.read()
        return future

    def read(self) -> None:
        step, future = self.waiting.pop(0)
        future.set_result(self.runner.finish(step))

    def read_all(self) -> None:
        while self.waiting:
            self.read()


class Crowd:
    """The shared planner, over an engine that has to be asked for its last steps."""

    def __init__(self, planner: type[Any], engine: Ahead, **settings: Any) -> None:
        self.planner = planner(engine, **settings)
        self.engine = engine

    def run(self) -> dict[int, list[int]]:
        planner = self.planner
        while not all(job.is_done for job in planner.jobs):
            plan = planner._plan()
            planner.futures.append((plan, self.engine.submit(plan)))
        self.engine.submit(StepPlan(finished=planner.finished))
        self.engine.read_all()
        answers: dict[int, list[int]] = planner.run()
        return answers


def expected(engine: Any, planner: type[Any], wishes: list[dict[str, Any]]) -> list[list[int]]:
    crowd = planner(engine)
    for wish in wishes:
        crowd.add(**wish)
    answers = list(crowd.run().values())
    engine.submit(StepPlan(finished=crowd.finished)).result()
    return answers


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_cpu_path(name: str, model_folder: Callable[[str], Path], make_engine: Any, planner: Any) -> None:
    """In random chunks and groups, with preemptions, greedy and seeded."""
    folder = model_folder(name)
    source = random.Random(7)
    wishes: list[dict[str, Any]] = [
        {"prompt": [source.randrange(2, 150) for _ in range(length)], "num_new_tokens": 10}
        for length in (1, 2, 5, 16, 17, 31, 48, 70, 33)
    ]
    for i, wish in enumerate(wishes[4:]):
        wish |= {"temperature": 0.8, "seed": i, "top_p": 0.9} if i % 2 else {"frequency_penalty": 0.5}
    tokens = expected(make_engine(folder), planner, wishes)
    for seed, preempt in [(0, 0.0), (1, 0.15)]:
        crowd = Crowd(planner, Ahead(folder), seed=seed, preempt=preempt)
        for wish in wishes:
            crowd.planner.add(**wish)
        assert list(crowd.run().values()) == tokens


def test_sequences_share_prefix_blocks(model_folder: Callable[[str], Path], make_engine: Any, planner: Any) -> None:
    folder = model_folder("llama")
    prompts = [PROMPT, [*PROMPT[:32], 9, 8, 7], PROMPT[:33]]
    tokens = expected(make_engine(folder), planner, [{"prompt": p, "num_new_tokens": 10} for p in prompts])
    crowd = Crowd(planner, Ahead(folder), seed=3)
    first = crowd.planner.add(prompts[0], 10)
    for prompt in prompts[1:]:
        crowd.planner.add(prompt, 10, prefix_of=first)
    assert list(crowd.run().values()) == tokens


class Server:
    """Requests through the real scheduler, two steps in flight."""

    def __init__(self, engine: Ahead) -> None:
        self.engine = engine
        self.scheduler = Scheduler(engine.info, SchedulerConfig())
        self.answers: dict[str, list[int]] = {}
        self.ends: dict[str, FinishReason] = {}
        self.in_flight: list[tuple[StepPlan, Future[StepResult]]] = []

    def add(self, name: str, prompt: list[int], sampling: SamplingParams, output: list[int] | None = None) -> None:
        request = GenerationRequest(name, "a", prompt, sampling, 0.0, 1e9, output_token_ids=output or [])
        self.answers[name] = []
        assert self.scheduler.add(request, 0.0) is None

    def step(self) -> bool:
        plan = self.scheduler.schedule(0.0)
        if plan is not None:
            self.in_flight.append((plan, self.engine.submit(plan)))
        else:
            self.engine.read_all()
        self.scheduler.check_integrity()
        while self.in_flight and self.in_flight[0][1].done():
            done, future = self.in_flight.pop(0)
            for delta in self.scheduler.update(done, future.result()):
                self.answers[delta.request_id] += delta.token_ids
                if delta.finish_reason is not None:
                    self.ends[delta.request_id] = delta.finish_reason
        return self.scheduler.has_work or bool(self.in_flight)

    def abort(self, name: str) -> None:
        if self.scheduler.abort(name) is not None:
            self.ends[name] = FinishReason.ABORT


@pytest.mark.parametrize("seed", range(6))
def test_the_scheduler_drives_it_ahead(
    seed: int, model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    """Chunked prefill, cached prefixes, memory for half of what wants to run, and requests that are aborted while
    their steps are under way: whoever finishes has the CPU path's answer."""
    folder = model_folder("llama")
    server = Server(Ahead(folder, max_num_seqs=6, num_blocks=14))
    source = random.Random(seed)
    wishes: dict[str, dict[str, Any]] = {}
    kinds = [{}, {"temperature": 1.0, "seed": seed}, {"presence_penalty": 1.0}, {"logprobs": 2}, {"logit_bias": {7: 3}}]
    for i in range(12):
        prompt = PROMPT[: source.randint(1, 40)] + [source.randint(2, 150) for _ in range(source.randint(0, 30))]
        count, kind = source.randint(20, 60), source.choice(kinds)
        wishes[str(i)] = {"prompt": prompt, "num_new_tokens": count, **kind}
        server.add(str(i), prompt, SamplingParams(max_tokens=count, **({"temperature": 0.0} | kind)))
        for _ in range(source.randint(0, 4)):
            server.step()
        if source.random() < 0.2:
            server.abort(source.choice(sorted(wishes)))
    while server.step():
        if source.random() < 0.1 and (running := server.scheduler.lanes.foreground.running):
            server.scheduler.lanes.preempt(source.choice(running))
    assert server.scheduler.snapshot().preemptions > 0
    assert set(server.ends) == set(wishes)
    finished = [name for name in wishes if server.ends[name] is FinishReason.LENGTH]
    answers = expected(make_engine(folder), planner, [wishes[name] for name in finished])
    assert [server.answers[name] for name in finished] == answers


def test_padding_belongs_to_nobody(model_folder: Callable[[str], Path]) -> None:
    """A batch of three runs as one of four: what its padding writes is in the scratch block alone."""
    engine = Ahead(model_folder("llama"))
    new = [NewSequence(i, PROMPT[: 5 + i], SamplingParams(max_tokens=4, temperature=0)) for i in range(3)]
    first = [ScheduledSequence(i, 0, 5 + i, True, [2 * i, 2 * i + 1]) for i in range(3)]
    engine.submit(StepPlan([first], new))
    before = [layer.keys.clone() for layer in engine.memory.layers]
    engine.submit(StepPlan([[ScheduledSequence(i, 5 + i, 1, True, [2 * i, 2 * i + 1]) for i in range(3)]]))
    engine.read_all()
    for was, layer in zip(before, engine.memory.layers, strict=True):
        changed = (~torch.isclose(was, layer.keys, rtol=0, atol=0, equal_nan=True)).any(dim=(2, 3)).nonzero().tolist()
        assert changed == [[0, 5], [2, 6], [4, 7], [engine.memory.scratch_block, 0]]


def test_graph_inputs_end_in_the_scratch_slot(model_folder: Callable[[str], Path]) -> None:
    engine = Ahead(model_folder("llama"), max_num_seqs=20)
    decodes = engine.runner._decodes
    assert decodes.buckets.sizes == (1, 2, 4, 8, 16, 20)
    for count in range(1, 21):
        rows = [ScheduledSequence(i, 3, 1, True, [i]) for i in range(count)]
        numbers = np.arange(count)
        layout = type("Layout", (), {"scheduled": rows, "tokens": numbers, "slots": numbers, "positions": numbers})
        size = decodes.buckets.size_for(count)
        assert size is not None
        padded = decodes.padded(layout, size)  # type: ignore[arg-type]
        assert padded[:, :count].tolist() == [numbers.tolist()] * 3
        assert (padded[1, count:] == engine.memory.scratch_slot).all()
        assert not padded[[0, 2], count:].any()


def test_more_sequences_than_slots(model_folder: Callable[[str], Path], make_engine: Any, planner: Any) -> None:
    """Those that are preempted lose their slots, with counts and tables, and get them back."""
    folder = model_folder("llama")
    wishes = [{"prompt": PROMPT[i : i + 9], "num_new_tokens": 8, "frequency_penalty": 0.3} for i in range(12)]
    tokens = expected(make_engine(folder), planner, wishes)
    engine = Ahead(folder, max_num_seqs=3)
    server = Server(engine)
    for i, wish in enumerate(wishes):
        params = SamplingParams(max_tokens=8, temperature=0.0, frequency_penalty=0.3)
        server.add(str(i), wish["prompt"], params)  # type: ignore[arg-type]
    steps = 0
    while server.step():
        steps += 1
        if steps % 3 == 0 and (running := server.scheduler.lanes.foreground.running):
            server.scheduler.lanes.preempt(running[0])
    assert [server.answers[str(i)] for i in range(12)] == tokens


def test_an_unknown_position_fails_the_step(model_folder: Callable[[str], Path]) -> None:
    engine = Ahead(model_folder("llama"))
    new = [NewSequence(0, [1, 2], SamplingParams(max_tokens=4))]
    with pytest.raises(ValueError, match="not known"):
        engine.submit(StepPlan([[ScheduledSequence(0, 0, 3, True, [0])]], new))


def test_prompt_logprobs_equal_the_cpu_path(
    model_folder: Callable[[str], Path], make_engine: Any, planner: Any
) -> None:
    folder = model_folder("llama")
    told = []
    for engine in (make_engine(folder), Ahead(folder)):
        new = [NewSequence(0, PROMPT, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=2, logprobs=2))]
        future = engine.submit(StepPlan([[ScheduledSequence(0, 0, 40, True, [0, 1, 2])]], new))
        if isinstance(engine, Ahead):
            engine.read_all()
        told.append(future.result())
    theirs, ours = told
    assert theirs.tokens == ours.tokens
    assert len(ours.prompt_logprobs[0]) == 39
    for mine, other in zip(
        [*ours.prompt_logprobs[0], ours.logprobs[0]], [*theirs.prompt_logprobs[0], theirs.logprobs[0]], strict=True
    ):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in mine.top] == [token for token, _ in other.top]


class Rising:
    """A grammar whose tokens rise by one or two, from 10; it is complete at 20."""

    def __init__(self, tokens: list[int]) -> None:
        self.last = tokens[-1] if tokens else 10

    def banned(self) -> Any:
        return ~np.isin(np.arange(160), [self.last + 1, self.last + 2])

    def advance(self, token: int) -> bool:
        assert token - self.last in (1, 2)
        self.last = token
        return token >= 20


class Grammars:
    def matcher(self, params: SamplingParams, vocab_size: int, tokens: Any = ()) -> Rising:
        return Rising(list(tokens))


def test_grammars_hold_beside_others(model_folder: Callable[[str], Path]) -> None:
    """What may come next hangs on a token that was sampled one step ahead of what is known."""
    engine = Ahead(model_folder("llama"), grammars=Grammars())
    grammar = Grammar(GrammarKind.LARK, "")
    params = [SamplingParams(max_tokens=4, temperature=0, grammar=grammar), SamplingParams(max_tokens=4, temperature=0)]
    plans = [StepPlan([[ScheduledSequence(i, 0, 40, True, [4 * i, 4 * i + 1, 4 * i + 2]) for i in range(2)]])]
    plans[0].new = [NewSequence(i, PROMPT, chosen) for i, chosen in enumerate(params)]
    for step in range(8):
        tables = [list(range(4 * i, 4 * i + 3)) for i in range(2)]
        plans.append(StepPlan([[ScheduledSequence(i, 40 + step, 1, True, tables[i]) for i in range(2)]]))
    futures = [engine.submit(plan) for plan in plans]
    engine.read_all()
    results = [future.result() for future in futures]
    held = [result.tokens[0] for result in results]
    assert all(later - earlier in (1, 2) for earlier, later in pairwise([10, *held]))
    ends = [i for i, result in enumerate(results) if 0 in result.ended]
    assert held[ends[0]] >= 20
    assert results[ends[0]].ended == {0: None}
    free = [result.tokens[1] for result in results]
    assert any(later - earlier not in (1, 2) for earlier, later in pairwise(free))
