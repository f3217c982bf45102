"""Which texts share a batch: of about one length, fair over accounts, and each request ends exactly once."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from batching.scheduler import SchedulerConfig
from batching.text_scheduler import TextScheduler
from batching.turns import LINGER, SHARE, background_tokens
from engines.steps import TextBatch, TextRow
from engines.types import (
    BACKGROUND_PRIORITY,
    EngineInfo,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    OutputDelta,
    SamplingParams,
    TextSpan,
)

FAR = 1e9


def info(**fields: Any) -> EngineInfo:
    return EngineInfo(**{"max_model_len": 100, "max_num_seqs": 8, "vocab_size": 1000, "token_budget": 400} | fields)


def texts(name: str, lengths: list[int], account: str = "a", arrival: float = 0.0, **fields: Any) -> GenerationRequest:
    """Text i is `lengths[i]` times the token i."""
    ids = [i for i, length in enumerate(lengths) for _ in range(length)]
    spans = [TextSpan(length, length) for length in lengths]
    return GenerationRequest(
        name, account, ids, SamplingParams(max_tokens=0), arrival, fields.pop("deadline", FAR), texts=spans, **fields
    )


def make(info_: EngineInfo | None = None, **config: Any) -> TextScheduler:
    return TextScheduler(info_ or info(), SchedulerConfig(**config))


def vectors(batch: TextBatch) -> list[bytes]:
    return [bytes([row.token_ids[0] % 256, len(row.token_ids)]) for row in batch.rows]


def run(scheduler: TextScheduler, now: float = 0.0) -> tuple[list[TextBatch], dict[str, list[OutputDelta]]]:
    batches, deltas = [], {}
    while (batch := scheduler.schedule(now)) is not None:
        batches.append(batch)
        scheduler.check_integrity()
        for delta in scheduler.update(batch, vectors(batch)):
            deltas.setdefault(delta.request_id, []).append(delta)
        scheduler.check_integrity()
    return batches, deltas


def test_the_background_runs_alone_in_small_batches_and_gets_its_share() -> None:
    scheduler = make(info(token_budget=800))
    scheduler.add(texts("batch", [20] * 40, priority=BACKGROUND_PRIORITY), 0.0)
    assert len(batch_of(scheduler)) == background_tokens(800, is_calm=True) // 20 == 2
    scheduler.add(texts("urgent", [20] * 400), 0.0)
    turns = [len(batch_of(scheduler)) for _ in range(SHARE + 2)]
    assert turns == [8] * SHARE + [1, 8]  # one text is more than a small batch may have
    assert run(scheduler)[1]["urgent"][-1].finish_reason is FinishReason.STOP
    assert run(scheduler, now=LINGER)[1]["batch"][-1].finish_reason is FinishReason.STOP


def batch_of(scheduler: TextScheduler) -> list[TextRow]:
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.update(batch, vectors(batch))
    scheduler.check_integrity()
    return batch.rows


def test_every_text_comes_back_under_its_index() -> None:
    scheduler = make()
    lengths = [5, 90, 3, 40, 41, 5, 88, 7, 1, 100]
    assert scheduler.add(texts("r", lengths), 0.0) is None
    batches, deltas = run(scheduler)
    got = {index: data for delta in deltas["r"] for index, data in delta.vectors.items()}
    assert got == {i: bytes([i, length]) for i, length in enumerate(lengths)}
    assert [delta.finish_reason for delta in deltas["r"]] == [None] * (len(deltas["r"]) - 1) + [FinishReason.STOP]
    assert deltas["r"][-1].computed_tokens == sum(lengths)
    assert len(batches) > 1


def test_batches_hold_texts_of_about_one_length_within_the_budget() -> None:
    numbers = random.Random(1)
    scheduler = make(max_padding_waste=0.1)
    for i in range(6):
        lengths = [numbers.randint(1, 100) for _ in range(20)]
        scheduler.add(texts(f"r{i}", lengths, account=f"a{i % 3}"), 0.0)
    batches, _ = run(scheduler)
    for batch in batches:
        sizes = [len(row.token_ids) for row in batch.rows]
        assert len(sizes) <= 8
        assert len(sizes) * max(sizes) <= max(400, max(sizes))
        assert len(sizes) * max(sizes) <= 1.1 * sum(sizes)
    assert sum(len(batch.rows) for batch in batches) == 120
    assert len(batches) < 60, "texts do share batches"


def test_a_large_request_does_not_hold_up_another_account() -> None:
    scheduler = make()
    scheduler.add(texts("large", [50] * 64, account="a"), 0.0)
    first = scheduler.schedule(0.0)
    assert first is not None
    scheduler.add(texts("small", [50], account="b"), 0.0)
    scheduler.update(first, vectors(first))
    ended: list[str] = []
    for _ in range(2):  # the accounts are even at first, and then the elder's turn comes first
        batch = scheduler.schedule(0.0)
        assert batch is not None
        ended += [delta.request_id for delta in scheduler.update(batch, vectors(batch)) if delta.finish_reason]
    assert ended == ["small"]


def test_accounts_share_by_tokens() -> None:
    scheduler = make(info(max_num_seqs=2, token_budget=100))
    scheduler.add(texts("a", [100] * 20, account="a"), 0.0)
    scheduler.add(texts("b", [10] * 200, account="b"), 0.0)
    served: Counter[int] = Counter()
    while sum(served.values()) < 1000:
        batch = scheduler.schedule(0.0)
        assert batch is not None
        served[len(batch.rows[0].token_ids)] += sum(len(row.token_ids) for row in batch.rows)
        scheduler.update(batch, vectors(batch))
    # A long text alone, or two short ones: these come five times as often.
    assert abs(served[100] - served[10]) <= 100


def test_abort_says_what_was_computed() -> None:
    scheduler = make(info(max_num_seqs=2))
    scheduler.add(texts("r", [10] * 6), 0.0)
    scheduler.add(texts("waits", [10], account="b"), 0.0)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    delta = scheduler.abort("r")
    assert delta is not None
    assert (delta.finish_reason, delta.computed_tokens) == (FinishReason.ABORT, 20)
    assert scheduler.abort("r") is None
    assert scheduler.update(batch, vectors(batch)) == []
    _, deltas = run(scheduler)
    assert list(deltas) == ["waits"]


def test_one_that_never_began_costs_nothing() -> None:
    scheduler = make(info(max_num_seqs=1))
    scheduler.add(texts("first", [10] * 4), 0.0)
    scheduler.schedule(0.0)
    scheduler.add(texts("second", [10]), 0.0)
    delta = scheduler.abort("second")
    assert delta is not None
    assert (delta.finish_reason, delta.computed_tokens) == (FinishReason.ABORT, 0)


def test_who_waits_too_long_is_told_and_who_has_begun_is_not() -> None:
    scheduler = make(info(max_num_seqs=1), queue_timeout=10)
    scheduler.add(texts("begun", [10] * 4), 0.0)
    scheduler.schedule(0.0)
    scheduler.add(texts("waits", [10]), 0.0)
    scheduler.add(texts("hurried", [10], deadline=2.0), 0.0)
    errors = {delta.request_id: delta.error for delta in scheduler.expire(11.0)}
    assert {name: error.code for name, error in errors.items() if error} == {
        "waits": ErrorCode.QUEUE_TIMEOUT,
        "hurried": ErrorCode.DEADLINE,
    }
    assert (scheduler.snapshot().running, scheduler.snapshot().waiting) == (1, 0)


def refusal(scheduler: TextScheduler, request: GenerationRequest) -> tuple[ErrorCode, str]:
    delta = scheduler.add(request, 0.0)
    assert delta is not None
    assert delta.error is not None
    assert delta.finish_reason is FinishReason.ERROR
    return delta.error.code, delta.error.message


def test_what_can_not_run_is_refused() -> None:
    scheduler = make(max_queue=1)
    assert refusal(scheduler, texts("r", [3, 101]))[1] == "A text has 101 tokens; this model takes 1 to 100."
    assert refusal(scheduler, texts("r", []))[0] is ErrorCode.INVALID
    prompt = GenerationRequest("r", "a", [1, 2], SamplingParams(max_tokens=4), 0.0, FAR)
    assert refusal(scheduler, prompt)[1] == "This model turns texts into vectors, and does nothing else."
    outside = GenerationRequest("r", "a", [1000], SamplingParams(max_tokens=0), 0.0, FAR, texts=[TextSpan(1, 1)])
    assert "outside the vocabulary" in refusal(scheduler, outside)[1]
    assert scheduler.add(texts("waits", [1]), 0.0) is None
    assert refusal(scheduler, texts("r", [1]))[0] is ErrorCode.OVERLOADED


def test_every_request_ends_exactly_once_whatever_happens() -> None:
    numbers = random.Random(7)
    scheduler = make(info(max_num_seqs=4, token_budget=120), max_queue=5, queue_timeout=30)
    ends: Counter[str] = Counter()
    names = [f"r{i}" for i in range(200)]
    alive: set[str] = set()
    for step, name in enumerate(names):
        now = float(step)
        lengths = [numbers.randint(1, 100) for _ in range(numbers.randint(1, 12))]
        deltas = [scheduler.add(texts(name, lengths, account=f"a{step % 5}", arrival=now), now)]
        alive.add(name)
        if numbers.random() < 0.3:
            deltas.append(scheduler.abort(numbers.choice(sorted(alive))))
        deltas += scheduler.expire(now)
        for _ in range(numbers.randint(0, 4)):
            if (batch := scheduler.schedule(now)) is not None:
                deltas += scheduler.update(batch, vectors(batch))
        for delta in filter(None, deltas):
            if delta.finish_reason is not None:
                ends[delta.request_id] += 1
                alive.discard(delta.request_id)
        scheduler.check_integrity()
    for delta in (d for ds in run(scheduler, 200.0)[1].values() for d in ds if d.finish_reason):
        ends[delta.request_id] += 1
    assert ends == Counter(names)


def test_out_of_memory_a_batch_is_done_in_smaller_ones() -> None:
    scheduler = make()
    lengths = {"x": [5, 9, 7, 6, 8], "y": [6, 6]}
    for name, each in lengths.items():
        assert scheduler.add(texts(name, each), 0.0) is None
    most, answers, deltas = 2, Counter[str](), []
    for _ in range(40):
        if (batch := scheduler.schedule(0.0)) is None:
            break
        too_large = len(batch.rows) > most
        deltas += scheduler.undo(batch, was_too_large=True) if too_large else scheduler.update(batch, vectors(batch))
        scheduler.check_integrity()
    for delta in deltas:
        answers[delta.request_id] += len(delta.vectors)
    assert answers == {name: len(each) for name, each in lengths.items()}
    assert scheduler.stats.out_of_memory
    assert not scheduler.snapshot().running


def test_a_text_that_has_no_memory_by_itself_is_refused_and_no_other() -> None:
    scheduler = make()
    scheduler.add(texts("x", [90, 5]), 0.0)
    scheduler.add(texts("y", [5, 6]), 0.0)
    ended: dict[str, OutputDelta] = {}
    while (batch := scheduler.schedule(0.0)) is not None:
        lacks = any(len(row.token_ids) == 90 for row in batch.rows)
        deltas = scheduler.undo(batch, was_too_large=True) if lacks else scheduler.update(batch, vectors(batch))
        ended |= {delta.request_id: delta for delta in deltas if delta.finish_reason is not None}
        scheduler.check_integrity()
    assert (ended["x"].error and ended["x"].error.code) is ErrorCode.ENGINE_FAILED
    assert ended["y"].finish_reason is FinishReason.STOP
