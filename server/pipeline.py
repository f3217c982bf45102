"""What is done with a request before it runs: resolve, tokenize, filter, check.

Whatever is wrong with a request is said here, while nothing is held. `server.generation` then runs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engines.types import SamplingParams, Task, Usage
from server import logs, tools
from server.cache.answering import answering
from server.errors import InvalidRequest, Overloaded, UnsupportedParameter
from server.generation import Generation, Resources
from server.job import Caller, Job, PreparedPrompt, Reading
from server.metrics import Metrics
from server.off_loop import off_loop_if
from server.registry import Deployment
from server.routing import Router, serving
from server.store.records import UsageRecord
from server.text.answer import AnswerStream
from server.text.content_filter import ContentFilter
from server.text.formats.thinking import OPEN
from server.text.logprobs import TokenTeller
from server.text.prompt import client_strings, strings_in
from server.text.stream import TextStream
from server.text.tokenizer import Tokenizer
from server.tools import Plan
from server.wire.chat import ChatCompletionRequest
from server.wire.common import ResponseHead, new_id
from server.wire.completions import CompletionRequest
from server.wire.prompts import check_token_prompt
from server.wire.sampling import GenerationFields, resolve

DRAIN_RETRY_MS = 1000  # by then a load balancer has seen /readyz
LONG_TEXT = 20_000  # characters; longer ones are filtered and tokenized off the event loop


@dataclass(slots=True, frozen=True)
class _Prompt:
    """`text` is the same, for engines that take text; `words` as it can stand before an answer."""

    token_ids: list[int]
    text: str
    words: str = ""


@dataclass(slots=True, frozen=True)
class _Asked:
    """What a chat request asks for besides words; `opened`: its prompt ends where the model reasons."""

    plan: Plan
    opened: bool


class Pipeline:
    """What every request goes through. One a gateway."""

    def __init__(self, router: Router, content_filter: ContentFilter, resources: Resources) -> None:
        self.router = router
        self._filter = content_filter
        self._resources = resources

    async def chat(
        self, caller: Caller, body: ChatCompletionRequest, feature: str = "chat", id_prefix: str = "chatcmpl"
    ) -> Generation:
        """Raises APIError when something is wrong with the request; nothing is held yet."""
        deployment = self._generating(caller, body.model)
        self._check_tellable(body)
        messages, plan = _asked(body, deployment)
        prepared = await off_loop_if(
            _is_long(messages, plan), lambda: self._prepare_chat(body, messages, plan, deployment)
        )
        return self._generation(caller, body, deployment, [prepared], feature, id_prefix, plan)

    async def count_tokens(self, caller: Caller, body: ChatCompletionRequest) -> int:
        """Those of the prompt that `chat` would make. Raises APIError as it does; no model runs."""
        deployment = self._generating(caller, body.model)
        messages, plan = _asked(body, deployment)

        def count() -> int:
            rendered = self._render(messages, plan, deployment)
            return len(deployment.encoder.encode_rendered(rendered))

        return await off_loop_if(_is_long(messages, plan), count)

    async def completion(self, caller: Caller, body: CompletionRequest) -> Generation:
        """The same for legacy completions."""
        deployment = self._generating(caller, body.model)
        self._check_tellable(body)
        size = sum(map(len, body.prompt))
        encoded = await off_loop_if(size > LONG_TEXT, lambda: [self._encode(p, deployment) for p in body.prompt])
        prepared = [self._prepare(body, deployment, prompt) for prompt in encoded]
        return self._generation(caller, body, deployment, prepared, "completions", "cmpl")

    def _generating(self, caller: Caller, model: str) -> Deployment:
        return serving(self.router.resolve(model, caller.principal), Task.GENERATE)

    @property
    def alters_answers(self) -> bool:
        """Whether clients read something else than the model wrote."""
        return self._filter.masks_output

    def _check_tellable(self, body: GenerationFields) -> None:
        """What is altered in the text would be read in its tokens."""
        if body.token_logprobs is not None and self.alters_answers:
            message = (
                "Unsupported parameter: 'logprobs'. Words of this model's answers are masked; tokens would show them."
            )
            raise UnsupportedParameter("logprobs", message)

    def _render(self, messages: list[dict[str, Any]], plan: Plan, deployment: Deployment) -> str:
        self._check_content(client_strings(messages), "messages")
        self._check_content(strings_in(plan.shown), "tools")
        return deployment.encoder.render(messages, tools=plan.shown, template_kwargs=plan.template_kwargs)

    def _prepare_chat(
        self, body: ChatCompletionRequest, messages: list[dict[str, Any]], plan: Plan, deployment: Deployment
    ) -> PreparedPrompt:
        encoder = deployment.encoder
        rendered = self._render(messages, plan, deployment)
        text = encoder.as_text(rendered) if deployment.takes_text else ""
        prompt = _Prompt(encoder.encode_rendered(rendered), text)
        return self._prepare(body, deployment, prompt, _Asked(plan, opened=rendered.rstrip().endswith(OPEN)))

    def _encode(self, prompt: str | list[int], deployment: Deployment) -> _Prompt:
        tokenizer, takes_text = deployment.tokenizer, deployment.takes_text
        if isinstance(prompt, str):
            self._check_content([prompt], "prompt")
            return _Prompt(tokenizer.encode(prompt, add_special_tokens=True), prompt if takes_text else "", prompt)
        check_token_prompt(prompt, deployment.limits.vocab_size)
        self._check_content([tokenizer.decode(prompt)], "prompt")
        # Half a character at its end is completed by the answer.
        words = tokenizer.detokenizer().add(prompt)
        return _Prompt(prompt, deployment.encoder.ids_as_text(prompt) if takes_text else "", words)

    def _check_content(self, texts: Iterable[str], param: str) -> None:
        for text in texts:
            if self._filter.check(text) is not None:
                raise InvalidRequest(
                    "The request was refused by the content filter.", param=param, code="content_filter"
                )

    def _prepare(
        self, body: GenerationFields, deployment: Deployment, prompt: _Prompt, asked: _Asked | None = None
    ) -> PreparedPrompt:
        sampling = resolve(body, len(prompt.token_ids), deployment.limits)
        specials = deployment.tokenizer.special_ids()
        if asked is not None and deployment.limits.takes_grammars:
            grammar = asked.plan.grammar(deployment.form, specials, opened=asked.opened)
            sampling = replace(sampling, grammar=grammar)
        echo = prompt.words if body.echoes else None

        reading = self._reading(body, sampling, asked, echo)
        echoed = prompt.token_ids if echo is not None else []
        new_stream = partial(_new_stream, reading, deployment, self._filter, echoed)

        def count_tokens(text: str) -> int:
            return len(deployment.tokenizer.encode(text, add_special_tokens=False))

        return PreparedPrompt(
            prompt.token_ids,
            sampling,
            new_stream,
            count_tokens,
            prompt.text,
            reading,
            echo=echo,
            only_prompt=body.only_prompt,
        )

    def _reading(
        self, body: GenerationFields, sampling: SamplingParams, asked: _Asked | None, echo: str | None
    ) -> Reading:
        reading = Reading(
            tuple(body.stop),
            sampling.min_tokens,
            mask=self._filter.mask_version,
            tells_tokens=body.token_logprobs is not None,
            num_echoed=len(echo or ""),
        )
        if asked is None:
            return reading
        max_calls = None if asked.plan.parallel else 1
        return replace(reading, is_chat=True, tool_names=asked.plan.names, opened=asked.opened, max_calls=max_calls)

    def _generation(
        self,
        caller: Caller,
        body: GenerationFields,
        deployment: Deployment,
        prompts: list[PreparedPrompt],
        feature: str,
        id_prefix: str,
        plan: Plan | None = None,
    ) -> Generation:
        if self._resources.is_draining():
            raise Overloaded("The server is shutting down.", code="shutting_down", retry_after_ms=DRAIN_RETRY_MS)
        deployment.check_served()
        principal = caller.principal
        features = caller.features | {feature} | ({"stream"} if body.stream else set())
        job = Job(
            caller=caller,
            deployment=deployment,
            prompts=prompts,
            features=features,
            head=ResponseHead(new_id(id_prefix), int(time.time()), deployment.id, deployment.fingerprint),
            layers=self._resources.entitlement.layers(principal, deployment.model, deployment.version, features),
            streamed=bool(body.stream),
            include_usage=body.include_usage,
            grammar_param=plan.grammar_param if plan else None,
            is_legacy=plan is not None and plan.is_legacy,
            num_samples=body.num_samples,
            num_wanted=body.num_choices,
        )
        return answering(job, self._resources)


def _new_stream(
    reading: Reading, deployment: Deployment, content_filter: ContentFilter, echoed: list[int]
) -> AnswerStream:
    """Its text is that of the new tokens alone, as transformers decodes them, unless the prompt stands before."""
    form, tokenizer = deployment.form, deployment.tokenizer
    reader = form.reader(reading.tool_names, opened=reading.opened) if reading.is_chat else None
    specials = tokenizer.special_ids() if reader else {}
    visible = {specials[marker]: marker.encode() for marker in form.markers if marker in specials}
    detokenizer = tokenizer.detokenizer(visible)
    detokenizer.add(echoed)
    text = TextStream(detokenizer, reading.stop, content_filter.output_mask(), reading.min_tokens)
    tokens = _token_teller(reading, tokenizer, visible) if reading.tells_tokens else None
    return AnswerStream(text, reader, form.new_call_id, reading.max_calls, tokens)


def _token_teller(reading: Reading, tokenizer: Tokenizer, visible: dict[int, bytes]) -> TokenTeller:
    names, own = tokenizer.pieces, tokenizer.detokenizer(visible)
    return TokenTeller(own, lambda i: names([i])[0], tells_all=not reading.is_chat, offset=reading.num_echoed)


def _asked(body: ChatCompletionRequest, deployment: Deployment) -> tuple[list[dict[str, Any]], Plan]:
    messages = [message.for_template() for message in body.messages]
    variables, takes_grammars = deployment.encoder.template.variables, deployment.limits.takes_grammars
    return messages, tools.plan(body, deployment.form, variables, takes_grammars=takes_grammars)


def _is_long(messages: list[dict[str, Any]], plan: Plan) -> bool:
    return sum(map(len, strings_in([messages, plan.shown]))) > LONG_TEXT


def report(record: UsageRecord, caller: Caller, metrics: Metrics) -> None:
    """Count and log one finished request. Its text is in neither."""
    metrics.requests.labels(record.model, record.version, record.endpoint, record.outcome).inc()
    usage = Usage(record.prompt_tokens, record.cached_tokens, record.completion_tokens)
    metrics.observe_usage(record.model, record.version, usage, is_replayed=record.is_replayed)
    times = metrics.of(record.model, record.version)
    times.request.observe(record.total_ms / 1000)
    if record.queue_ms is not None:
        times.queue.observe(record.queue_ms / 1000)
    logs.request_finished(_log_fields(record, caller))


def _log_fields(record: UsageRecord, caller: Caller) -> dict[str, object]:
    return {
        "request_id": record.request_id,
        "client_request_id": caller.client_request_id,
        "account": caller.principal.account_name,
        "key": record.key_id,
        "model": f"{record.model}@{record.version}",
        "endpoint": record.endpoint,
        "outcome": record.outcome,
        "cache": record.cache,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "queue_ms": record.queue_ms,
        "first_token_ms": record.first_token_ms,
        "total_ms": record.total_ms,
    }
