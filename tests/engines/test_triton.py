"""Every convention, on a real Triton: what arrives there, and what comes back."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from batching.scheduler import SchedulerConfig
from batching.stream_batcher import StreamBatcher
from engines.base import EngineError
from engines.fake_tokens import fake_answer
from engines.triton.engine import TritonEngine, read_options
from engines.types import ErrorCode, FinishReason
from tests.engines.triton_bench import Answer, ask, build, request, watched
from tests.fakes import eventually, make_request
from tests.triton_server import TritonServer

pytestmark = pytest.mark.triton

COUNTING = ("vllm", "vllm-batched", "ensemble", "ensemble-unbatched", "tokens", "tokens-wide", "whole-tokens")
STREAMING = (*COUNTING[:-1], "ensemble-accumulating", "ensemble-uncounted", "llmapi", "llmapi-batched")
WHOLE = ("whole-tokens", "whole-text")


def expected(prompt: str, max_tokens: int = 12, version: int = 1) -> str:
    ids = list(prompt.encode()) + [version] * (version > 1)
    return bytes(fake_answer(ids, max_tokens)).decode()


async def answer_of(triton: TritonServer, model: str, prompt: str, version: str = "", **sampling: Any) -> Answer:
    async with watched(build(triton.url, model, version)) as engine:
        return await ask(engine, request(prompt, **sampling))


# --- answers


@pytest.mark.parametrize("model", STREAMING)
async def test_every_convention_streams_the_model_s_answer(triton: TritonServer, model: str) -> None:
    answer = await answer_of(triton, model, "hello", **({"version": "1"} if model == "ensemble" else {}))
    assert (answer.text, answer.reason) == (expected("hello"), FinishReason.LENGTH)
    assert len(answer.deltas) > 6, "it comes in pieces"


@pytest.mark.parametrize("model", WHOLE)
async def test_an_answer_that_comes_at_once_is_without_the_prompt(triton: TritonServer, model: str) -> None:
    answer = await answer_of(triton, model, "hello")
    assert (answer.text, answer.reason) == (expected("hello"), FinishReason.LENGTH)


@pytest.mark.parametrize("model", COUNTING)
async def test_tokens_are_counted_as_the_model_counts_them(triton: TritonServer, model: str) -> None:
    answer = await answer_of(triton, model, "hello", **({"version": "1"} if model == "ensemble" else {}))
    assert answer.num_tokens == 12
    counted = [delta.prompt_tokens for delta in answer.deltas if delta.prompt_tokens]
    assert set(counted) <= {5}
    assert bool(counted) == ("tokens" not in model)


@pytest.mark.parametrize("model", STREAMING)
async def test_the_model_s_own_end(triton: TritonServer, model: str) -> None:
    answer = await answer_of(triton, model, "!stop")
    assert (len(answer.text), answer.reason) == (5, FinishReason.STOP)


@pytest.mark.parametrize("model", STREAMING)
async def test_no_half_characters(triton: TritonServer, model: str) -> None:
    answer = await answer_of(triton, model, "!utf8")
    assert answer.text == "é" * 6
    assert "\ufffd" not in "".join(delta.text for delta in answer.deltas)


async def test_a_character_that_is_never_completed_is_told_at_the_end(triton: TritonServer) -> None:
    answer = await answer_of(triton, "llmapi", "!utf8", max_tokens=5)
    assert answer.text == "éé\ufffd"


async def test_stop_tokens_end_the_answer_where_ids_are_spoken(triton: TritonServer) -> None:
    stop = fake_answer(list(b"hello"), 12)[4]
    first = fake_answer(list(b"hello"), 12).index(stop) + 1
    answer = await answer_of(triton, "tokens", "hello", stop_token_ids=frozenset({stop}))
    assert (len(answer.text), answer.reason) == (first, FinishReason.STOP)


async def test_versions_answer_for_themselves(triton: TritonServer) -> None:
    answers = [await answer_of(triton, "ensemble", "hello", version) for version in ("1", "2", "")]
    assert [answer.text for answer in answers] == [expected("hello", version=v) for v in (1, 2, 2)]


@pytest.mark.parametrize("model", ["vllm", "ensemble", "tokens", "llmapi"])
async def test_an_error_ends_the_answer_and_nothing_else(triton: TritonServer, model: str) -> None:
    async with watched(build(triton.url, model)) as engine:
        answer = await ask(engine, request("!fail"))
        assert answer.reason is FinishReason.ERROR
        assert answer.error is not None
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert "told to fail" not in answer.error.message, "the server's own words are for the log"
        assert (await ask(engine, request("hello"))).reason is FinishReason.LENGTH


async def test_a_full_queue_of_triton_s_own_is_an_overload(triton: TritonServer) -> None:
    async with watched(build(triton.url, "narrow")) as engine:
        answers = await asyncio.gather(*(ask(engine, request("hello", 4)) for _ in range(8)))
        errors = [answer.error for answer in answers if answer.error is not None]
        assert 0 < len(errors) < 8
        assert {error.code for error in errors} == {ErrorCode.OVERLOADED}
        assert engine.capacity(), "it is not away for that"


async def test_leaving_an_answer_stops_the_work(triton: TritonServer) -> None:
    async with watched(build(triton.url, "vllm-slow")) as engine:
        stream = engine.generate(request("hello", 4000), 5)
        await anext(stream)
        assert await num_running(engine) == 1
        await stream.aclose()
        for _ in range(100):
            if not await num_running(engine):
                break
        assert await num_running(engine) == 0


async def num_running(engine: TritonEngine) -> int:
    return int((await ask(engine, request("!running"))).text)


# --- parameters


SAMPLED = {"temperature": 0.5, "top_p": 0.75, "top_k": 7, "seed": 2**40 + 1, "presence_penalty": 0.5}
ARRIVES = {
    "vllm": {
        "sampling_parameters": {"max_tokens": 12, "repetition_penalty": 1.25, "min_p": 0.25, **SAMPLED},
        "stream": [True],
        "return_finish_reason": [True],
    },
    "ensemble": {"max_tokens": [12], "min_tokens": [3], "end_id": [-1], **{k: [v] for k, v in SAMPLED.items()}},
    "tokens": {"request_output_len": [12], "input_lengths": [5], "runtime_top_k": [7], "runtime_top_p": [0.75]},
    "llmapi": {"sampling_param_max_tokens": [12], "sampling_param_top_k": [7], "sampling_param_seed": [2**40 + 1]},
}


@pytest.mark.parametrize("model", ARRIVES)
async def test_parameters_arrive(triton: TritonServer, model: str) -> None:
    everything = {"repetition_penalty": 1.25, "min_p": 0.25, "min_tokens": 3, "ignore_eos": True, **SAMPLED}
    arrived = json.loads((await answer_of(triton, model, "!echo", **everything)).text)
    if "sampling_parameters" in arrived:
        arrived["sampling_parameters"] = json.loads(arrived["sampling_parameters"][0])
    for name, value in ARRIVES[model].items():
        if isinstance(value, dict):
            assert value.items() <= arrived[name].items()
        else:
            assert arrived[name] == value


@pytest.mark.parametrize("model", ["ensemble", "tokens", "llmapi"])
async def test_greedy_is_the_likeliest_token_alone(triton: TritonServer, model: str) -> None:
    arrived = json.loads((await answer_of(triton, model, "!echo", temperature=0.0)).text)
    (top_k,) = (value for name, value in arrived.items() if name.endswith("top_k"))
    assert top_k == [1]


async def test_a_seed_is_fitted_to_its_tensor(triton: TritonServer) -> None:
    arrived = json.loads((await answer_of(triton, "tokens-wide", "!echo", seed=2**40 + 1)).text)
    assert arrived["seed"] == [1]


@pytest.mark.parametrize(
    ("model", "carried", "not_carried"),
    [
        ("vllm", {"min_p", "stop_token_ids", "seed", "ignore_eos"}, {"logit_bias"}),
        ("ensemble", {"min_tokens", "seed", "ignore_eos"}, {"logit_bias", "min_p", "stop_token_ids"}),
        ("tokens", {"stop_token_ids", "ignore_eos", "top_k"}, {"logit_bias", "min_p"}),
        ("llmapi", {"seed", "top_k"}, {"logit_bias", "min_p", "min_tokens", "repetition_penalty", "ignore_eos"}),
    ],
)
def test_what_a_convention_carries(triton: TritonServer, model: str, carried: set[str], not_carried: set[str]) -> None:
    sampling = build(triton.url, model).info.sampling
    assert sampling is not None
    assert carried <= sampling
    assert not not_carried & sampling


def test_what_a_model_is(triton: TritonServer) -> None:
    stream, whole = build(triton.url, "tokens", max_num_seqs=7), build(triton.url, "whole-text")
    assert (stream.info.takes_text, stream.info.max_batch_size, stream.capacity()) == (False, 0, 7)
    assert (whole.info.takes_text, whole.info.max_batch_size, whole.capacity()) == (True, 16, 16)


# --- whole batches


async def test_equal_lengths_run_together(triton: TritonServer) -> None:
    """Padding makes them equal; what is padding does not count."""
    async with watched(build(triton.url, "whole-tokens")) as engine:
        prompts = ["x" * length for length in range(9, 17)]
        answers = await asyncio.gather(*(ask(engine, request(prompt), padded_len=16) for prompt in prompts))
    assert [answer.text for answer in answers] == [expected(prompt) for prompt in prompts]


async def executed_batch_size(triton: TritonServer, engine: TritonEngine, waste: float | None) -> float:
    """Of 48 prompts of 12 lengths: as the batcher groups them within that much padding, or (None) just sent."""
    before = counts(triton, "whole-tokens")
    lengths = [50 + index % 12 for index in range(48)]
    if waste is None:
        await asyncio.gather(*(ask(engine, request("x" * length, 5)) for length in lengths))
    else:
        await batched(engine, lengths, waste)
    inferences, executions = (now - then for now, then in zip(counts(triton, "whole-tokens"), before, strict=True))
    return inferences / executions


async def batched(engine: TritonEngine, lengths: list[int], waste: float) -> None:
    ended: set[str] = set()
    batcher = StreamBatcher(
        engine,
        SchedulerConfig(max_padding_waste=waste),
        0,
        lambda deltas: ended.update(delta.request_id for delta in deltas if delta.finish_reason is FinishReason.LENGTH),
    )
    running = asyncio.create_task(batcher.run())
    await asyncio.sleep(0)
    now = time.monotonic()
    for index, length in enumerate(lengths):
        batcher.add(make_request(f"r{index}", [120] * length, max_tokens=5, arrival=now, deadline=now + 600))
    await eventually(lambda: len(ended) == len(lengths))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def counts(triton: TritonServer, model: str) -> tuple[int, int]:
    """Inferences and executions, as Triton counts them."""
    stats = httpx.get(f"http://{triton.http_url}/v2/models/{model}/stats").json()["model_stats"][0]
    return stats["inference_count"], stats["execution_count"]


async def test_grouping_by_length_makes_the_batches_that_triton_executes(triton: TritonServer) -> None:
    async with watched(build(triton.url, "whole-tokens")) as engine:
        alone = await executed_batch_size(triton, engine, None)
    engine = build(triton.url, "whole-tokens")
    equal = await executed_batch_size(triton, engine, 0.0)
    padded = await executed_batch_size(triton, build(triton.url, "whole-tokens"), 0.3)
    assert alone < 1.5
    assert alone < equal < padded


def test_grouping_is_a_setting(triton: TritonServer) -> None:
    grouped = build(triton.url, "whole-tokens", max_num_seqs=40, options={"max_padding_waste": 0.25})
    loose = build(triton.url, "whole-tokens", max_num_seqs=40, options={"group_by_length": False})
    assert (grouped.info.max_batch_size, grouped.info.max_padding_waste, grouped.info.max_num_seqs) == (16, 0.25, 16)
    assert (loose.info.max_batch_size, loose.info.max_num_seqs) == (0, 40)


# --- what can't be


NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("nobody", "", "nobody.*unknown model"),
        ("ensemble", "9", "ensemble version 9.*not found"),
        ("no-max-tokens", "", "no input max_tokens; it has .*text_input"),
        ("no-text-output", "", "no output text_output"),
        ("wrong-type", "", "input max_tokens is FP32, expected INT32 or INT64"),
        ("no-language-model", "", "expected a language model"),
    ],
)
def test_a_model_that_can_t_be_spoken_to(triton: TritonServer, model: str, version: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        build(triton.url, model, version)
    message = str(caught.value)
    assert triton.url in message
    assert "\n" not in message


def test_nobody_is_there() -> None:
    with pytest.raises(EngineError, match=f"{NOWHERE}: no Triton"):
        build(NOWHERE, "m")


def test_http_is_not_grpc(triton: TritonServer) -> None:
    with pytest.raises(EngineError, match="no Triton"):
        build(triton.http_url, "vllm")


def test_a_context_that_nobody_knows(triton: TritonServer, tmp_path: Any) -> None:
    with pytest.raises(EngineError, match="max_model_len"):
        build(triton.url, "vllm", max_model_len=0, path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 77}')
    assert build(triton.url, "vllm", max_model_len=0, path=str(tmp_path)).info.max_model_len == 77


@pytest.mark.parametrize(
    "options",
    [
        {"x": 1},
        {"reload": 1},
        {"canary_timeout": "1"},
        {"canary_timeout": -1},
        {"group_by_length": 0},
        {"max_padding_waste": True},
        {"max_padding_waste": -0.1},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="options"):
        read_options(options)
