"""How likely tokens were, through the HTTP API, against transformers' log_softmax of the bundled model in float32."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import openai
import pytest
import torch
import transformers

from server.settings import BUNDLED_FOLDER
from server.text.tokenizer import HFTokenizer, load_tokenizer
from tests.penstock_process import PenstockProcess

PROMPT = "A quota is a limit. " * 30  # several chunks
TOLERANCE = 1e-4


@cache
def tokenizer() -> HFTokenizer:
    return load_tokenizer(BUNDLED_FOLDER)


@cache
def reference() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(BUNDLED_FOLDER, dtype=torch.float32)


@torch.inference_mode()
def rows(token_ids: list[int]) -> torch.Tensor:
    """Row i: of what comes behind token i."""
    logits: torch.Tensor = reference()(torch.tensor([token_ids])).logits[0]
    return logits.log_softmax(dim=-1)


@torch.inference_mode()
def greedy(token_ids: list[int], max_tokens: int) -> list[int]:
    """The answer, with the token that ends it."""
    made = reference().generate(torch.tensor([token_ids]), max_new_tokens=max_tokens, do_sample=False)
    answer: list[int] = made[0].tolist()[len(token_ids) :]
    return answer


@pytest.fixture(scope="module")
def sdk(bundled: PenstockProcess) -> openai.OpenAI:
    return bundled.sdk()


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_and_its_answer(sdk: openai.OpenAI, stream: bool) -> None:
    made: Any = sdk.completions.create(
        model="gpt-4", prompt=PROMPT, max_tokens=8, temperature=0, echo=True, logprobs=3, stream=stream
    )
    choices = [choice for part in (made if stream else [made]) for choice in part.choices]
    told = [choice.logprobs for choice in choices if choice.logprobs is not None]
    values = [value for each in told for value in each.token_logprobs]
    tops = [top for each in told for top in each.top_logprobs]
    names = [name for each in told for name in each.tokens]
    text = "".join(choice.text for choice in choices)
    prompt_ids = tokenizer().encode(PROMPT, add_special_tokens=True)
    answer_ids = greedy(prompt_ids, 8)
    expected = rows(prompt_ids + answer_ids)
    assert text.startswith(PROMPT)
    assert values[0] is None
    assert len(values) == len(prompt_ids + answer_ids)
    for position, token in enumerate((prompt_ids + answer_ids)[1:], 1):
        row = expected[position - 1]
        assert values[position] == pytest.approx(float(row[token]), abs=TOLERANCE)
        assert max(tops[position].values()) == pytest.approx(float(row.max()), abs=TOLERANCE)
        assert names[position] in tops[position]
    assert all(value == max(top.values()) for value, top in list(zip(values, tops, strict=True))[len(prompt_ids) :])


def test_a_prompt_is_scored_as_it_is_when_it_is_answered(sdk: openai.OpenAI) -> None:
    """As harnesses score what a model holds likely: nothing is generated, and nothing read from the prefix cache."""
    asked: Any = {"model": "gpt-4", "prompt": [PROMPT, "Hello"], "echo": True, "logprobs": 1}
    for _ in range(2):
        made = sdk.completions.create(max_tokens=0, **asked)
        for choice, prompt in zip(made.choices, asked["prompt"], strict=True):
            ids = tokenizer().encode(prompt, add_special_tokens=True)
            expected = rows(ids)
            assert choice.text == prompt
            assert choice.logprobs is not None
            assert choice.logprobs.token_logprobs is not None
            likely = [float(expected[i - 1][token]) for i, token in enumerate(ids)][1:]
            assert choice.logprobs.token_logprobs[1:] == pytest.approx(likely, abs=TOLERANCE)
        assert made.usage is not None
        assert made.usage.completion_tokens == 0


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_chat_s_answer(sdk: openai.OpenAI, temperature: float) -> None:
    """Of the model's own probabilities, whatever the temperature and the bias."""
    messages: Any = [{"role": "user", "content": "解释量子计算"}]
    options: Any = {"logit_bias": {"400": 3}, "seed": 5, "temperature": temperature}
    made = sdk.chat.completions.create(
        model="gpt-4", messages=messages, max_tokens=24, logprobs=True, top_logprobs=5, **options
    )
    (choice,) = made.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    content = choice.logprobs.content
    assert b"".join(bytes(each.bytes or ()) for each in content).decode(errors="replace") == choice.message.content
    assert all(each.logprob <= each.top_logprobs[0].logprob for each in content)
    assert all(len(each.top_logprobs) == 5 for each in content)


def test_seeded_answers_differ_and_repeat(sdk: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Tell me something about quotas and keys."}]

    def ask(n: int) -> list[str | None]:
        made = sdk.chat.completions.create(
            model="gpt-4", messages=messages, n=n, seed=11, temperature=1.8, max_tokens=12
        )
        return [choice.message.content for choice in made.choices]

    four = ask(4)
    assert len(set(four)) > 1
    assert ask(4) == four
    assert ask(1) == four[:1]


def test_several_answers_compute_their_prompt_once(bundled: PenstockProcess, sdk: openai.OpenAI) -> None:
    """What the worker says that it computed: the prompt's blocks once, and each answer's own last few tokens."""
    prompt = "How many times is this one computed? " * 20
    length = len(tokenizer().encode(prompt, add_special_tokens=True))
    before = num_computed(bundled)
    made = sdk.completions.create(model="gpt-4", prompt=prompt, n=6, max_tokens=4)
    assert made.usage is not None
    assert made.usage.prompt_tokens == length
    assert length <= num_computed(bundled) - before <= length + 5 * 16


def num_computed(server: PenstockProcess) -> float:
    """Prompt tokens. A worker reports ten times a second: this is what it says when it has nothing new to say."""
    last = -1.0
    while (found := server.metric("penstock_engine_prefill_tokens_total", model="tiny-chat", version="1")) != last:
        last = found
        time.sleep(0.5)
    return found


def test_the_best_of_several(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "gpt-4", "prompt": "Hello", "seed": 3, "temperature": 1.5, "max_tokens": 6, "logprobs": 0}
    every = sdk.completions.create(n=5, **asked)
    best = sdk.completions.create(best_of=5, n=2, **asked)

    def mean(choice: Any) -> float:
        values: list[float] = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert every.usage is not None
    assert best.usage is not None
    assert every.usage.completion_tokens == best.usage.completion_tokens
