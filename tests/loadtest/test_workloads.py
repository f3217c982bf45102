import statistics

import pytest

from loadtest.workloads import WORDS, WORKLOADS, RequestSize, Stream, WorkloadName, take

SIZE = RequestSize(1024, 1024)


@pytest.mark.parametrize("name", WorkloadName)
def test_the_seed_decides_everything(name: WorkloadName) -> None:
    assert take(name, SIZE, 20, seed=3) == take(name, SIZE, 20, seed=3)
    assert take(name, SIZE, 20, seed=3) != take(name, SIZE, 20, seed=4)


def test_the_first_requests_do_not_depend_on_the_count() -> None:
    assert take(WorkloadName.CHAT, SIZE, 20, seed=0)[:5] == take(WorkloadName.CHAT, SIZE, 5, seed=0)


def test_the_same_on_every_machine() -> None:
    """Pinned: a change here makes old results incomparable."""
    sizes = [(r.input_tokens, r.max_tokens) for r in take(WorkloadName.CHAT, SIZE, 3, seed=0)]
    assert sizes == [(109, 148), (199, 375), (28, 78)]


@pytest.mark.parametrize("name", WorkloadName)
def test_warm_up_shares_no_prompt_with_the_measured_part(name: WorkloadName) -> None:
    measured = {request.prompt for request in take(name, SIZE, 20, seed=0)}
    warmup = {request.prompt for request in take(name, SIZE, 20, seed=0, stream=Stream.WARMUP)}
    assert not measured & warmup


@pytest.mark.parametrize("name", WorkloadName)
def test_a_prompt_has_a_word_a_token(name: WorkloadName) -> None:
    for request in take(name, SIZE, 20, seed=0):
        words = request.prompt.split(" ")
        assert len(words) == request.input_tokens
        assert set(words) <= set(WORDS)


def test_fixed_is_exact() -> None:
    sizes = {(r.input_tokens, r.max_tokens) for r in take(WorkloadName.FIXED, RequestSize(10, 7), 9, seed=0)}
    assert sizes == {(10, 7)}


@pytest.mark.parametrize(("bound", "low"), [(1024, 100), (50, 5), (1, 1)])
def test_uniform_stays_inside_its_bounds(bound: int, low: int) -> None:
    requests = take(WorkloadName.UNIFORM, RequestSize(bound, bound), 200, seed=0)
    assert all(low <= r.input_tokens <= bound and low <= r.max_tokens <= bound for r in requests)


def test_chat_has_the_published_shape() -> None:
    requests = take(WorkloadName.CHAT, SIZE, 3000, seed=0)
    inputs, outputs = [r.input_tokens for r in requests], [r.max_tokens for r in requests]
    assert min(inputs + outputs) >= 4
    assert max(inputs + outputs) <= 1024
    assert statistics.median(inputs) == pytest.approx(98.5, rel=0.1)  # e ** 4.59
    assert statistics.mean(outputs) == pytest.approx(179, rel=0.1)


def test_chat_clips_to_smaller_bounds() -> None:
    requests = take(WorkloadName.CHAT, RequestSize(2, 64), 50, seed=0)
    assert {r.input_tokens for r in requests} == {2}
    assert max(r.max_tokens for r in requests) == 64


def test_every_name_has_a_workload() -> None:
    assert set(WORKLOADS) == set(WorkloadName)
