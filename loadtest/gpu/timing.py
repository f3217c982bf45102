"""How fast is the GPU path? Against the memory's bandwidth, and against transformers' own continuous batching."""

from __future__ import annotations

import time
from collections import deque

import torch
from transformers import GenerationConfig

from batching.scheduler import Scheduler, SchedulerConfig
from engines.steps import NewSequence, ScheduledSequence, StepPlan
from engines.torch.gpu.runner import LaunchedStep
from engines.types import EngineInfo, GenerationRequest, SamplingParams
from loadtest.gpu.correctness import Row
from loadtest.gpu.models import BLOCK_SIZE, Served

COPY_BYTES = 4 << 30
LEAST_OF_FLOOR, MOST_HOST_MS, LEAST_RATIO = 0.6, 1.0, 4.0
CONCURRENT, PROMPT, OUTPUT = 64, 256, 128  # of the comparison


def bandwidth() -> float:
    """Bytes a second of a copy, read and written: the median of ten, after three to warm up."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * COPY_BYTES / float(sorted(times[3:])[5])


class Decoding:
    """A batch of sequences that decode for as long as they are asked to."""

    def __init__(self, served: Served, batch: int, context: int) -> None:
        self.runner, self.batch, self.context = served.runner, batch, context
        self.table_len = served.memory.tables.shape[1]
        sampling = SamplingParams(max_tokens=1 << 20, temperature=0.0)
        vocab = int(served.model.config.vocab_size)
        for i in range(batch):
            prompt = torch.randint(vocab, (context,)).tolist()
            plan = StepPlan([[self._row(i, 0, context)]], [NewSequence(i, prompt, sampling)])
            self.runner.finish(self.runner.launch(plan))

    def _row(self, i: int, start: int, count: int) -> ScheduledSequence:
        table = list(range(i * self.table_len, (i + 1) * self.table_len))
        return ScheduledSequence(i, start, count, True, table)

    def launch(self) -> LaunchedStep:
        plan = StepPlan([[self._row(i, self.context, 1) for i in range(self.batch)]])
        self.context += 1
        return self.runner.launch(plan)

    def step_s(self, steps: int) -> float:
        """Of one step, while the next is launched behind it."""
        last = self.launch()
        self.runner.finish(last)
        start = time.perf_counter()
        for _ in range(steps):
            last = self.launch()
        self.runner.finish(last)
        return (time.perf_counter() - start) / steps

    def host_s(self, steps: int) -> float:
        """Of launching one step, the median, on a device that has nothing to do."""
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step = self.launch()
            times.append(time.perf_counter() - start)
            self.runner.finish(step)
        return sorted(times)[steps // 2]

    def end(self) -> None:
        self.runner.launch(StepPlan(finished=list(range(self.batch))))


def decode(
    name: str, served: Served, batch: int, bytes_per_s: float, steps: int = 150, context: int = 1024
) -> list[Row]:
    decoding = Decoding(served, batch, context)
    decoding.step_s(10)
    step_s = min(decoding.step_s(steps) for _ in range(2))
    floor_s = (served.weight_bytes + batch * (decoding.context - steps) * served.token_bytes) / bytes_per_s
    host_ms = decoding.host_s(50) * 1e3
    decoding.end()
    share = floor_s / step_s
    figure = f"{share:.0%} ({step_s * 1e3:.2f} ms, {batch / step_s:.0f} tok/s)"
    return [
        Row(f"{name}: decode at {batch}, share of the bandwidth floor", figure, "60%", share >= LEAST_OF_FLOOR),
        Row(f"{name}: host work a step at {batch}", f"{host_ms:.2f} ms", "1 ms", host_ms <= MOST_HOST_MS),
    ]


def throughput(served: Served, prompts: list[list[int]]) -> float:
    """Output tokens a second, all requests at once through the scheduler, two steps in flight."""
    info = EngineInfo(
        PROMPT + OUTPUT, CONCURRENT, int(served.model.config.vocab_size), BLOCK_SIZE, served.memory.num_blocks, 2048, 2
    )
    scheduler = Scheduler(info, SchedulerConfig())
    sampling = SamplingParams(max_tokens=OUTPUT, temperature=0.0)
    start = time.perf_counter()
    for i, prompt in enumerate(prompts):
        refusal = scheduler.add(GenerationRequest(str(i), "a", prompt, sampling, 0.0, 1e9), 0.0)
        assert refusal is None
    waiting: deque[tuple[StepPlan, LaunchedStep]] = deque()
    total = 0
    while scheduler.has_work:
        if (plan := scheduler.schedule(0.0)) is not None:
            waiting.append((plan, served.runner.launch(plan)))
        if waiting and (len(waiting) == info.steps_in_flight or plan is None):
            done, step = waiting.popleft()
            total += sum(len(delta.token_ids) for delta in scheduler.update(done, served.runner.finish(step)))
    took = time.perf_counter() - start
    if (goodbye := scheduler.farewell()) is not None:
        served.runner.launch(goodbye)
    return total / took


def generate_batch(served: Served, prompts: list[list[int]]) -> float:
    """Output tokens a second of transformers' continuous batching, the same model and prompts."""
    config = served.model.config
    ours = config._attn_implementation
    generation = GenerationConfig(max_new_tokens=OUTPUT, do_sample=False, eos_token_id=-1, pad_token_id=0)
    try:
        served.model.set_attn_implementation("sdpa")
        with torch.device("cpu"):  # where it expects to be
            served.model.generate_batch(prompts[:2], generation_config=generation)
            start = time.perf_counter()
            answers = served.model.generate_batch(prompts, generation_config=generation)
            took = time.perf_counter() - start
    finally:
        served.model.set_attn_implementation(ours)
    return sum(len(answer.generated_tokens) for answer in answers.values()) / took


def comparison(name: str, served: Served) -> list[Row]:
    vocab = int(served.model.config.vocab_size)
    prompts = [torch.randint(vocab, (PROMPT,)).tolist() for _ in range(CONCURRENT)]
    throughput(served, prompts)
    fresh = [torch.randint(vocab, (PROMPT,)).tolist() for _ in range(CONCURRENT)]
    ours = throughput(served, fresh)
    rows = [Row(f"{name}: {CONCURRENT} requests of {PROMPT}/{OUTPUT}", f"{ours:.0f} tok/s")]
    try:
        theirs = generate_batch(served, fresh)
    except Exception as error:  # another version's interface should not cost the other figures
        reason = " ".join(str(error).split())[:60]
        return [*rows, Row(f"{name}: transformers' generate_batch", f"failed: {reason}", "", False)]
    ratio = ours / theirs
    figure = f"{ratio:.1f} x ({theirs:.0f} tok/s)"
    return [*rows, Row(f"{name}: ratio to transformers' generate_batch", figure, "4 x", ratio >= LEAST_RATIO)]
