import statistics

import pytest

from loadtest.records import BenchError, PlannedRequest
from loadtest.workloads import (
    ORDINARY_TOKENS,
    SOURCES,
    WORDS,
    Draw,
    Drawn,
    RequestSize,
    SharedPrefix,
    Stream,
    WorkloadName,
    take,
)

SIZE = RequestSize(1024, 1024)
DRAWN = list(SOURCES)
SHARED = SharedPrefix(RequestSize(60, 8), prefix_tokens=40, num_prefixes=3)


def drawn(name: WorkloadName, size: RequestSize, count: int, draw: Draw | None = None) -> list[PlannedRequest]:
    return take(Drawn(name, size), count, draw or Draw(0))


def texts(planned: list[PlannedRequest]) -> list[str]:
    prompts = [request.prompt for request in planned]
    assert all(isinstance(prompt, str) for prompt in prompts)
    return [str(prompt) for prompt in prompts]


@pytest.mark.parametrize("name", DRAWN)
def test_the_seed_decides_everything(name: WorkloadName) -> None:
    assert drawn(name, SIZE, 20, Draw(3)) == drawn(name, SIZE, 20, Draw(3))
    assert drawn(name, SIZE, 20, Draw(3)) != drawn(name, SIZE, 20, Draw(4))


def test_the_first_requests_do_not_depend_on_the_count() -> None:
    assert drawn(WorkloadName.CHAT, SIZE, 20)[:5] == drawn(WorkloadName.CHAT, SIZE, 5)


def test_the_same_on_every_machine() -> None:
    """Pinned: a change here makes old results incomparable."""
    sizes = [(r.input_tokens, r.max_tokens) for r in drawn(WorkloadName.CHAT, SIZE, 3)]
    assert sizes == [(109, 148), (199, 375), (28, 78)]


@pytest.mark.parametrize("name", DRAWN)
def test_warm_up_shares_no_prompt_with_the_measured_part(name: WorkloadName) -> None:
    measured = {request.prompt for request in drawn(name, SIZE, 20)}
    warmup = {request.prompt for request in drawn(name, SIZE, 20, Draw(0, Stream.WARMUP))}
    assert not measured & warmup


@pytest.mark.parametrize("name", DRAWN)
def test_a_prompt_has_a_word_a_token(name: WorkloadName) -> None:
    for request in drawn(name, SIZE, 20):
        words = texts([request])[0].split(" ")
        assert len(words) == request.input_tokens
        assert set(words) <= set(WORDS)


def test_fixed_is_exact() -> None:
    sizes = {(r.input_tokens, r.max_tokens) for r in drawn(WorkloadName.FIXED, RequestSize(10, 7), 9)}
    assert sizes == {(10, 7)}


@pytest.mark.parametrize(("bound", "low"), [(1024, 100), (50, 5), (1, 1)])
def test_uniform_stays_inside_its_bounds(bound: int, low: int) -> None:
    requests = drawn(WorkloadName.UNIFORM, RequestSize(bound, bound), 200)
    assert all(low <= r.input_tokens <= bound and low <= r.max_tokens <= bound for r in requests)


def test_chat_has_the_published_shape() -> None:
    requests = drawn(WorkloadName.CHAT, SIZE, 3000)
    inputs, outputs = [r.input_tokens for r in requests], [r.max_tokens for r in requests]
    assert min(inputs + outputs) >= 4
    assert max(inputs + outputs) <= 1024
    assert statistics.median(inputs) == pytest.approx(98.5, rel=0.1)  # e ** 4.59
    assert statistics.mean(outputs) == pytest.approx(179, rel=0.1)


def test_chat_clips_to_smaller_bounds() -> None:
    requests = drawn(WorkloadName.CHAT, RequestSize(2, 64), 50)
    assert {r.input_tokens for r in requests} == {2}
    assert max(r.max_tokens for r in requests) == 64


def test_a_variant_has_the_same_sizes_in_other_words() -> None:
    first, other = (drawn(WorkloadName.CHAT, SIZE, 20, Draw(0, variant=variant)) for variant in (0, 1))
    assert [(r.input_tokens, r.max_tokens) for r in first] == [(r.input_tokens, r.max_tokens) for r in other]
    assert not {text[:40] for text in texts(first)} & {text[:40] for text in texts(other)}


def test_prompts_of_token_ids_are_exact() -> None:
    for request in take(Drawn(WorkloadName.UNIFORM, SIZE, as_token_ids=True), 20, Draw(0)):
        assert isinstance(request.prompt, tuple)
        assert len(request.prompt) == request.input_tokens
        assert set(request.prompt) <= set(ORDINARY_TOKENS)


def test_prefixes_are_shared_and_what_follows_is_not() -> None:
    words = [text.split(" ") for text in texts(take(SHARED, 40, Draw(0)))]
    assert {len(each) for each in words} == {60}
    assert len({tuple(each[:40]) for each in words}) == 3
    assert len({tuple(each[40:]) for each in words}) == 40


def test_the_warm_up_has_prefixes_of_its_own() -> None:
    measured, warmup = (
        {text.split(" ")[0:40][-1] + text[:80] for text in texts(take(SHARED, 40, Draw(0, stream)))}
        for stream in Stream
    )
    assert not measured & warmup


def test_shared_prefixes_of_token_ids() -> None:
    workload = SharedPrefix(RequestSize(60, 8), 40, 1, as_token_ids=True)
    prompts = [request.prompt for request in take(workload, 5, Draw(0))]
    assert {len(prompt) for prompt in prompts} == {60}
    assert len({prompt[:40] for prompt in prompts}) == 1


@pytest.mark.parametrize("prefix", [0, 60, 61])
def test_a_prefix_is_a_part_of_the_prompt(prefix: int) -> None:
    with pytest.raises(BenchError, match="--prefix-tokens"):
        SharedPrefix(RequestSize(60, 8), prefix, 1)
