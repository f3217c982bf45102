"""Real models behind the whole server: what comes out is what the model says, whoever else is served."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import openai
import pytest
import tokenizers

from server.settings import BUNDLED_FOLDER
from tests.clients import Tenant
from tests.e2e.conftest import SHARED, SHARED_MODELS, shared_folder
from tests.penstock_process import PenstockProcess

TEXT = "the keys quotas models streams engines errors of a server are made for people who ask questions"
WORDS = TEXT.split()
GOLDEN_MODELS = ("stories260K", "tinyllm-chat")


def golden(model: str) -> list[dict[str, Any]]:
    shared_folder(model)
    cases: list[dict[str, Any]] = json.loads((SHARED / "golden" / "greedy.json").read_text())[model]
    return cases


async def complete(client: openai.AsyncOpenAI, model: str, prompt: str | list[int], **fields: Any) -> tuple[str, str]:
    """Text and finish reason; greedy, and streamed, unless said otherwise."""
    body = {"temperature": 0, "max_tokens": 64, "stream": True} | fields
    answer = await client.completions.create(model=model, prompt=prompt, **body)
    if not body["stream"]:
        return answer.choices[0].text, answer.choices[0].finish_reason
    text, reason = "", ""
    async for chunk in answer:
        text += chunk.choices[0].text
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


async def ask(client: openai.AsyncOpenAI, model: str, prompt: str, **fields: Any) -> Any:
    body = {"temperature": 0, "max_tokens": 48} | fields
    return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **body)


async def crowd(client: openai.AsyncOpenAI, model: str, count: int, *, seed: int = 1, longest: int = 45) -> list[str]:
    """Requests of mixed lengths, some of them sampled."""
    source = random.Random(seed)

    async def one(index: int) -> str:
        prompt = " ".join(source.choices(WORDS, k=source.randint(1, longest)))
        sampling = {"temperature": 1, "top_p": 0.9} if index % 3 == 0 else {}
        text, reason = await complete(client, model, prompt, max_tokens=source.choice([4, 16, 40]), **sampling)
        assert reason in ("stop", "length")
        return text

    return await asyncio.gather(*(one(index) for index in range(count)))


# --- exactness


@pytest.mark.shared
@pytest.mark.parametrize("model", GOLDEN_MODELS)
async def test_greedy_answers_are_those_of_transformers(several: PenstockProcess, model: str) -> None:
    cases = golden(model)
    async with several.async_sdk() as client:
        for case in cases:
            given = [case["prompt_ids"], case["prompt"]]
            answers = [await complete(client, model, prompt, max_tokens=len(case["new_ids"])) for prompt in given]
            assert [text for text, _ in answers] == [case["text"]] * 2, case["prompt"]


@pytest.mark.shared
@pytest.mark.parametrize("model", GOLDEN_MODELS)
async def test_and_so_they_are_with_sixty_four_others(several: PenstockProcess, model: str) -> None:
    cases = golden(model)
    async with several.async_sdk() as client:
        others = asyncio.create_task(crowd(client, model, 64, longest=12))
        texts = await asyncio.gather(
            *(complete(client, model, case["prompt_ids"], max_tokens=len(case["new_ids"])) for case in cases)
        )
        assert len(await others) == 64
    assert [text for text, _ in texts] == [case["text"] for case in cases]


async def test_seeded_answers_do_not_depend_on_their_neighbours(several: PenstockProcess) -> None:
    async with several.async_sdk() as client:
        settings = [{"seed": seed, "temperature": 1, "top_p": 0.95, "max_tokens": 24} for seed in range(6)]
        alone = [await complete(client, "tiny-chat", "Tell me", **each) for each in settings]
        others = asyncio.create_task(crowd(client, "tiny-chat", 40))
        together = await asyncio.gather(*(complete(client, "tiny-chat", "Tell me", **each) for each in settings))
        await others
    assert together == alone
    assert len(set(alone)) > 1


async def test_a_crowd_gets_the_same_greedy_answers_as_each_alone(several: PenstockProcess) -> None:
    prompts = [" ".join(WORDS[: 1 + 3 * index]) for index in range(5)]
    async with several.async_sdk() as client:
        alone = [(await ask(client, "tiny-chat", prompt)).choices[0].message.content for prompt in prompts]
        asked = [ask(client, "tiny-chat", prompt) for prompt in prompts * 4]
        together = [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
    assert together == alone * 4


async def test_sixty_four_streams(several: PenstockProcess) -> None:
    async with several.async_sdk() as client:
        texts = await crowd(client, "tiny-chat", 64, seed=2)
    assert len(texts) == 64
    await asyncio.to_thread(several.wait_for_metric, "penstock_requests_running", 0)


# --- parameters


async def test_stop_strings_across_the_borders_of_tokens(several: PenstockProcess) -> None:
    async with several.async_sdk() as client:
        whole = (await ask(client, "tiny-chat", "What is Penstock?")).choices[0].message.content
        assert len(whole) > 24
        for start in range(4, 20, 3):
            stop = whole[start : start + 5]
            answer = await ask(client, "tiny-chat", "What is Penstock?", stop=[stop, "no such text"])
            assert answer.choices[0].message.content == whole[: whole.index(stop)]
            assert answer.choices[0].finish_reason == "stop"
            text, reason = "", None
            async for chunk in await ask(client, "tiny-chat", "What is Penstock?", stop=stop, stream=True):
                text += chunk.choices[0].delta.content or ""
                reason = chunk.choices[0].finish_reason or reason
            assert (text, reason) == (whole[: whole.index(stop)], "stop")


async def test_logit_bias(several: PenstockProcess) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))
    (forced,) = tokenizer.encode("a", add_special_tokens=False).ids
    async with several.async_sdk() as client:
        plain, _ = await complete(client, "tiny-chat", "Hello", max_tokens=8)
        only, _ = await complete(client, "tiny-chat", "Hello", max_tokens=8, logit_bias={str(forced): 100})
        first = tokenizer.encode(plain, add_special_tokens=False).ids[0]
        without, _ = await complete(client, "tiny-chat", "Hello", max_tokens=8, logit_bias={str(first): -100})
    assert only == "a" * 8
    assert plain
    assert tokenizer.encode(without, add_special_tokens=False).ids[:1] != [first]


async def test_min_tokens_and_ignore_eos(several: PenstockProcess) -> None:
    async with several.async_sdk() as client:
        plain = await ask(client, "tiny-chat", "Hello!", max_tokens=100)
        count = plain.usage.completion_tokens
        assert (plain.choices[0].finish_reason, count < 80) == ("stop", True)
        longer = await ask(client, "tiny-chat", "Hello!", max_tokens=100, extra_body={"min_tokens": count + 9})
        assert longer.usage.completion_tokens >= count + 9
        endless = await ask(client, "tiny-chat", "Hello!", max_tokens=100, extra_body={"ignore_eos": True})
        assert (endless.usage.completion_tokens, endless.choices[0].finish_reason) == (100, "length")


async def test_the_context_has_an_end(several: PenstockProcess) -> None:
    async with several.async_sdk() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, "tiny-chat@2", "word " * 400)
        assert caught.value.code == "context_length_exceeded"
        assert "200" in str(caught.value)
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, "tiny-chat@2", "Hello!", max_tokens=199)
        assert caught.value.code == "context_length_exceeded"
        answer = await ask(client, "tiny-chat@2", "Hello!", max_tokens=None, extra_body={"ignore_eos": True})
        assert answer.usage.total_tokens == 200  # clamped to the room left


# --- several tenants and models


async def test_the_prefix_cache_is_each_accounts_own(several: PenstockProcess) -> None:
    prompt = "Penstock keeps what it has computed. " * 12
    first, second = Tenant.create(several), Tenant.create(several)

    async def cached(tenant: Tenant) -> tuple[int, str]:
        async with several.async_sdk(api_key=tenant.key) as client:
            answer = await ask(client, "tiny-chat", prompt)
            assert answer.usage.prompt_tokens_details.cached_tokens < answer.usage.prompt_tokens
            return answer.usage.prompt_tokens_details.cached_tokens, answer.choices[0].message.content

    cold, warm, foreign = await cached(first), await cached(first), await cached(second)
    assert cold[0] == foreign[0] == 0
    assert warm[0] > 32
    assert cold[1] == warm[1] == foreign[1]
    assert (await first.rows(2))["prompt_tokens"] > 2 * warm[0]


async def test_models_and_versions_side_by_side(several: PenstockProcess) -> None:
    async with several.async_sdk() as client:
        served = [model.id async for model in await client.models.list()]
        assert {"tiny-chat", "tiny-chat@1", "tiny-chat@2", "chat"} <= set(served)
        names = [name for name in served if "@" in name or name == "chat"]
        answers = await asyncio.gather(*(complete(client, name, "Once upon a time", stream=False) for name in names))
        assert all(text for text, _ in answers)
        by_name = dict(zip(names, answers, strict=True))
        assert by_name["chat"] == by_name["tiny-chat@1"] == by_name["tiny-chat@2"]
        answer = await ask(client, "tiny-chat", "Hello!", max_tokens=2)
        assert answer.model == "tiny-chat@1"


@pytest.mark.shared
@pytest.mark.parametrize("model", SHARED_MODELS)
async def test_shared_models_are_served(several: PenstockProcess, model: str) -> None:
    shared_folder(model)
    async with several.async_sdk() as client:
        assert (await client.models.retrieve(model)).id == model
        text, reason = await complete(client, model, "Once upon a time", max_tokens=12)
        assert reason in ("stop", "length")
        assert text or reason == "stop"
