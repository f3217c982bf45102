"""What happens to a request before it runs: everything that is wrong with it is said while nothing is held."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from batching.logs import JsonFormatter
from quota.levels import Plan
from quota.memory import MemoryLedger
from server.auth import Principal
from server.entitlement import Entitlement
from server.errors import APIError, InvalidRequest, ModelNotFound, Overloaded, PermissionDenied
from server.generation import Generation, Resources
from server.job import Caller
from server.metrics import Metrics
from server.pipeline import LONG_TEXT, Pipeline, report
from server.plans import PlanBook
from server.registry import Deployment, Registry
from server.routing import Router
from server.settings import RoutingSettings, TimeoutSettings
from server.store.records import KeyKind, UsageRecord, utc_now
from server.text.chat_template import ChatTemplate
from server.text.content_filter import ContentFilter
from server.text.prompt import ChatEncoder
from server.text.tokenizer import INERT, ByteTokenizer
from server.wire.chat import ChatCompletionRequest
from server.wire.completions import CompletionRequest
from server.wire.limits import ModelLimits

LIMITS = ModelLimits(context=100_000, vocab_size=256, max_tokens_default=16)
NOTHING: dict[str, Any] = {"replicas": [], "fingerprint": "fp"}


class WatchedEncoder(ChatEncoder):
    """Remembers in which thread it worked."""

    threads: ClassVar[list[int]] = []

    def encode_rendered(self, *arguments: Any, **options: Any) -> Any:
        self.threads.append(threading.get_ident())
        return super().encode_rendered(*arguments, **options)


class House:
    def __init__(
        self,
        features: frozenset[str] | None = None,
        terms: Sequence[str] = ("blocked",),
        system_prompt: str = "",
        masked: Sequence[str] = ("masked",),
        **deployment: Any,
    ) -> None:
        self.draining = False
        encoder = WatchedEncoder(ByteTokenizer(), ChatTemplate.contents_only(system_prompt))
        served = Deployment(
            **{"model": "m", "version": "1", "encoder": encoder, "limits": LIMITS, **NOTHING, **deployment}
        )
        registry = cast(Registry, SimpleNamespace(deployments={"m@1": served}))
        plans = PlanBook({"default": Plan("default")}, cast(Any, None))
        entitlement = Entitlement(MemoryLedger(), plans, lambda decision: None)
        self.metrics = Metrics()
        self.resources = Resources(
            entitlement=entitlement,
            leases=cast(Any, None),
            metrics=self.metrics,
            timeouts=TimeoutSettings(),
            finished=lambda record, caller: None,
            salt_key=b"salt",
            is_draining=lambda: self.draining,
        )
        router = Router(registry, RoutingSettings())
        self.pipeline = Pipeline(router, ContentFilter(terms, masked), self.resources)
        principal = Principal("acct", "acme", "key", KeyKind.API, None, features, "default", {}, {}, None)
        self.caller = Caller(principal, "req-1", "/v1/chat/completions", frozenset({"websocket"}))

    async def chat(self, content: str = "hello", **fields: Any) -> Generation:
        body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
        return await self.pipeline.chat(self.caller, ChatCompletionRequest.model_validate(body))

    async def complete(self, prompt: Any, **fields: Any) -> Generation:
        body = {"model": "m", "prompt": prompt, **fields}
        return await self.pipeline.completion(self.caller, CompletionRequest.model_validate(body))


async def test_a_chat_is_one_prompt_and_its_features() -> None:
    job = (await House().chat(max_tokens=3, stream=True, stream_options={"include_usage": True})).job
    (prompt,) = job.prompts
    assert bytes(prompt.token_ids) == b"hello"
    assert (prompt.sampling.max_tokens, job.cost) == (3, 8)
    assert job.features == {"chat", "stream", "websocket"}
    assert (job.streamed, job.include_usage) == (True, True)
    assert (job.head.model, job.head.fingerprint) == ("m@1", "fp")
    assert job.head.id.startswith("chatcmpl-")


async def test_a_completion_is_a_prompt_each() -> None:
    job = (await House().complete(["ab", "c"])).job
    assert [bytes(prompt.token_ids) for prompt in job.prompts] == [b"ab", b"c"]
    assert job.features == {"completions", "websocket"}
    assert job.cost == 2 + 16 + 1 + 16
    assert job.head.id.startswith("cmpl-")
    assert (await House().complete([[1, 2]])).job.prompts[0].token_ids == [1, 2]


async def _error(house: House, kind: type[APIError], **fields: Any) -> APIError:
    with pytest.raises(kind) as caught:
        await (house.complete(**fields) if "prompt" in fields else house.chat(**fields))
    return caught.value


async def test_what_is_wrong_is_said() -> None:
    house = House()
    assert (await _error(house, ModelNotFound, model="n")).param == "model"
    for fields, param in (({"content": "a BLOCKED b"}, "messages"), ({"prompt": ["a", "blocked"]}, "prompt")):
        error = await _error(house, InvalidRequest, **cast(dict[str, Any], fields))
        assert (error.code, error.param) == ("content_filter", param)
        assert "blocked" not in error.message.lower()
    thought = {"role": "assistant", "content": "a", "reasoning_content": "blocked"}
    assert (await _error(house, InvalidRequest, messages=[thought])).code == "content_filter"
    assert (await _error(house, InvalidRequest, max_tokens=100_000)).code == "context_length_exceeded"
    assert (await _error(house, InvalidRequest, prompt=[256])).param == "prompt"
    await _error(House(frozenset({"chat"})), PermissionDenied)  # not over a WebSocket


def _calling(name: str, arguments: str) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


FILTERED: dict[str, dict[str, Any]] = {
    "content": {"role": "user", "content": "a BLOCKED b"},
    "parts": {"role": "user", "content": [{"type": "text", "text": "blo"}, {"type": "text", "text": "cked"}]},
    "a mark of ours": {"role": "user", "content": f"blo{INERT}cked"},
    "refusal": {"role": "assistant", "refusal": "blocked"},
    "name": {"role": "user", "name": "blocked", "content": "x"},
    "tool_call_id": {"role": "tool", "tool_call_id": "blocked", "content": "x"},
    "function": _calling("blocked", "{}"),
    "arguments": _calling("f", "blocked"),
    "arguments, escaped": _calling("f", '{"a": ["bl\\u006fcked"]}'),
    "arguments, a key": _calling("f", '{"bl\\u006fcked": 1}'),
    "function_call": {"role": "assistant", "function_call": {"name": "f", "arguments": "blocked"}},
}


@pytest.mark.parametrize("message", FILTERED.values(), ids=FILTERED)
async def test_no_string_of_a_chat_evades_the_filter(message: dict[str, Any]) -> None:
    error = await _error(House(), InvalidRequest, messages=[{"role": "user", "content": "hello"}, message])
    assert (error.code, error.param) == ("content_filter", "messages")


@pytest.mark.parametrize("prompt", ["a blocked b", ["a", "Blocked"], list(b"blocked"), [[1], list(b"a BLOCKED b")]])
async def test_no_prompt_evades_the_filter(prompt: Any) -> None:
    error = await _error(House(), InvalidRequest, prompt=prompt)
    assert (error.code, error.param) == ("content_filter", "prompt")


async def test_what_is_not_the_client_s_is_not_filtered() -> None:
    """Neither roles and types, which it can't choose, nor the operator's own prompt."""
    house = House(
        terms=["user", "role", "function", "arguments", "content", "operator"], system_prompt="the operator's"
    )
    assert (await house.chat(messages=[{"role": "user", "content": "x"}, _calling("f", "{}")])).job.prompts


async def test_nothing_new_is_begun_while_the_server_ends() -> None:
    house = House()
    house.draining = True
    error = await _error(house, Overloaded)
    assert (error.status, error.code) == (503, "shutting_down")
    assert int(error.headers["retry-after-ms"]) > 0


async def test_long_prompts_are_tokenized_elsewhere() -> None:
    WatchedEncoder.threads.clear()
    await House().chat("x" * (LONG_TEXT - 1000))  # roles and names of fields count too
    await House().chat("x" * (LONG_TEXT + 1))
    await House().chat(messages=[_calling("f", "x" * LONG_TEXT), {"role": "user", "content": "x"}])
    here, *elsewhere = WatchedEncoder.threads
    assert here == threading.get_ident()
    assert here not in elsewhere


@pytest.mark.parametrize("prompt", ["x" * (LONG_TEXT + 1), [1] * (LONG_TEXT + 1)])
async def test_filtering_a_long_prompt_keeps_the_event_loop_free(prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(ContentFilter, "check", lambda self, text: threads.append(threading.get_ident()))
    await House().complete(prompt)
    await House().chat("x" * (LONG_TEXT + 1))
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_stop_strings_wait_for_min_tokens() -> None:
    (prompt,) = (await House().chat(stop="b", min_tokens=2)).job.prompts
    piece = prompt.new_stream().add(list(b"abcbd"))
    assert (piece.text, piece.stop) == ("abc", "b")


async def test_answers_are_masked_choice_by_choice() -> None:
    (prompt,) = (await House().chat()).job.prompts
    streams = [prompt.new_stream(), prompt.new_stream()]
    assert streams[0] is not streams[1]
    piece = streams[0].add(list(b"it is masked!"))
    assert piece.text + streams[0].finish().text == "it is ***!"


async def test_a_finished_request_is_counted_and_logged_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.request")
    house, metrics = House(), Metrics()
    features = frozenset({"chat"})
    times = {"queue_ms": 2, "first_token_ms": 5, "total_ms": 9}
    record = UsageRecord(
        "req-1", "acct", "key", "m", "1", "/v1/chat/completions", features, 5, 1, 3, utc_now(), outcome="stop", **times
    )
    report(record, house.caller, metrics)
    (logged,) = caplog.records
    line = json.loads(JsonFormatter().format(logged))
    assert line["model"] == "m@1"
    assert {name: line[name] for name in times} == times
    assert (line["account"], line["key"], line["outcome"]) == ("acme", "key", "stop")
    exposition = metrics.render().decode()
    requests = 'penstock_requests_total{endpoint="/v1/chat/completions",model="m",outcome="stop",version="1"} 1.0'
    assert requests in exposition
    assert 'penstock_tokens_total{kind="completion",model="m",version="1"} 3.0' in exposition
    assert "acme" not in exposition


async def test_many_at_once_do_not_meet() -> None:
    house = House()
    jobs = [generation.job for generation in await asyncio.gather(*(house.chat(f"n{n}") for n in range(50)))]
    assert [bytes(job.prompts[0].token_ids) for job in jobs] == [f"n{n}".encode() for n in range(50)]
    assert len({job.head.id for job in jobs}) == 50


# --- how likely tokens are

TELLS = replace(LIMITS, tells_logprobs=True)


async def test_tokens_would_show_the_words_that_are_masked() -> None:
    house = House(limits=TELLS)
    asked: list[Any] = [house.chat(logprobs=True), house.complete("a", logprobs=0), house.complete("a", logprobs=1)]
    for request in asked:
        with pytest.raises(InvalidRequest, match="masked") as caught:
            await request
        assert (caught.value.param, caught.value.code) == ("logprobs", "unsupported_parameter")
    assert (await house.complete("a", best_of=2)).job.num_samples == 2  # nobody is told of a token


async def test_an_engine_that_does_not_tell() -> None:
    house = House(masked=())
    for fields, param in (({"logprobs": 0}, "logprobs"), ({"best_of": 2}, "best_of")):
        with pytest.raises(InvalidRequest) as caught:
            await house.complete("a", **fields)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")
    assert (await house.complete("a", best_of=2, n=2, echo=True)).job.prompts[0].echo == "a"


async def test_what_is_asked_of_the_engine() -> None:
    house = House(masked=(), limits=TELLS)
    (chat,) = (await house.chat(logprobs=True, top_logprobs=7)).job.prompts
    assert (chat.sampling.logprobs, chat.sampling.prompt_logprobs) == (7, None)
    ranked = (await house.complete("a", best_of=3)).job
    assert (ranked.num_samples, ranked.num_wanted, ranked.prompts[0].sampling.logprobs) == (3, 1, 0)
    assert ranked.prompts[0].new_stream().tokens is None
    (scored,) = (await house.complete([97, 195], echo=True, logprobs=2, max_tokens=0)).job.prompts
    assert (scored.sampling.max_tokens, scored.sampling.prompt_logprobs, scored.only_prompt) == (1, 2, True)
    assert scored.echo == "a"  # the rest of its last character is the answer's


async def test_half_a_character_of_the_prompt_is_completed_by_the_answer() -> None:
    (prompt,) = (await House(masked=()).complete([97, 195], echo=True)).job.prompts
    assert prompt.new_stream().add([169]).text == "é"
    (prompt,) = (await House(masked=()).complete([97, 195])).job.prompts
    assert prompt.new_stream().add([169]).text == "\ufffd"


async def test_a_masked_word_over_the_seam_of_an_echo() -> None:
    (prompt,) = (await House().complete("say mas", echo=True)).job.prompts
    stream = prompt.new_stream()
    assert stream.echo("say mas").text + stream.add(list(b"ked!")).text + stream.finish().text == "say ***!"


async def test_logprobs_are_a_feature_that_a_key_may_lack() -> None:
    every = frozenset({"chat", "websocket", "logprobs"})
    assert (await House(every, masked=(), limits=TELLS).chat(logprobs=True)).job.features == every
    with pytest.raises(PermissionDenied, match="logprobs"):
        await House(every - {"logprobs"}, masked=(), limits=TELLS).chat(logprobs=True)
