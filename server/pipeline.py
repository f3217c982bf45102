"""What is done with a request before it runs: resolve, tokenize, filter, check.

Whatever is wrong with a request is said here, while nothing is held. `server.computation` then runs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.types import SamplingParams, Task, Usage
from server import logs, privacy, tools
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
from server.text.pii.placeholders import Placeholders
from server.text.prompt import ChatEncoder, client_strings, size_of, strings_in
from server.text.rewriting import Rewriting
from server.text.stream import TextStream
from server.text.tokenizer import Tokenizer
from server.tools import Plan
from server.wire.chat import ChatCompletionRequest
from server.wire.common import ResponseHead, new_id
from server.wire.completions import CompletionRequest
from server.wire.prompts import check_token_prompt
from server.wire.sampling import GenerationFields, resolve

if TYPE_CHECKING:  # what it imports is an optional dependency
    from server.text.pii.masker import Masker

DRAIN_RETRY_MS = 1000  # by then a load balancer has seen /readyz
LONG_TEXT = 20_000  # characters; longer ones are filtered and tokenized off the event loop


@dataclass(slots=True, frozen=True)
class _Prompt:
    """`text` is the same, for engines that take text; `words` as it can stand before an answer. `placeholders` are in
    all of them, and in `stops`; `restores` is their digest."""

    token_ids: list[int]
    text: str
    stops: Sequence[str]
    words: str = ""
    placeholders: Placeholders | None = None
    restores: bytes = b""

    def masked_by(self, masker: Masker, restores: bytes) -> _Prompt:
        return replace(self, placeholders=masker.placeholders, restores=restores)


@dataclass(slots=True, frozen=True)
class _Asked:
    """What a chat request asks for besides words; `opened`: its prompt ends where the model reasons."""

    plan: Plan
    opened: bool


@dataclass(slots=True, frozen=True)
class _Shown:
    """What the model is shown of a chat request."""

    messages: list[dict[str, Any]]
    plan: Plan
    masker: Masker | None = None

    def render(self, encoder: ChatEncoder) -> str:
        plan = self.plan
        return encoder.render(self.messages, tools=plan.shown, template_kwargs=plan.template_kwargs)


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
        deployment = self.generating(caller, body.model)
        self._check_tellable(body, deployment)
        messages, plan = _asked(body, deployment)
        prepared = await off_loop_if(
            _is_long(messages, plan), lambda: self._prepare_chat(body, messages, plan, deployment)
        )
        return self._generation(caller, body, deployment, [prepared], feature, id_prefix, plan)

    async def count_tokens(self, caller: Caller, body: ChatCompletionRequest, feature: str) -> int:
        """Those of the prompt that `chat` would make. Raises APIError as it does, PermissionDenied included where the
        key lacks `feature`; no model runs."""
        deployment = self.generating(caller, body.model)
        self._resources.entitlement.layers(caller.principal, deployment.model, deployment.version, {feature})
        messages, plan = _asked(body, deployment)

        def count() -> int:
            rendered = self._shown(messages, plan, deployment).render(deployment.encoder)
            return len(deployment.encoder.encode_rendered(rendered))

        return await off_loop_if(_is_long(messages, plan), count)

    async def completion(self, caller: Caller, body: CompletionRequest) -> Generation:
        """The same for legacy completions."""
        deployment = self.generating(caller, body.model)
        self._check_tellable(body, deployment)
        size = sum(map(len, body.prompt))
        encoded = await off_loop_if(size > LONG_TEXT, lambda: self._encode_all(body, deployment))
        prepared = [self._prepare(body, deployment, prompt) for prompt in encoded]
        return self._generation(caller, body, deployment, prepared, "completions", "cmpl")

    def generating(self, caller: Caller, model: str) -> Deployment:
        """Raises ModelNotFound, or InvalidRequest for one that does something else."""
        return serving(self.router.resolve(model, caller.principal), Task.GENERATE)

    def alters_answers(self, deployment: Deployment) -> bool:
        """Whether clients may read something else than the model wrote."""
        return self._filter.masks_output or deployment.pii is not None

    def _check_tellable(self, body: GenerationFields, deployment: Deployment) -> None:
        """What is altered in the text would be read in its tokens."""
        if body.token_logprobs is not None and self.alters_answers(deployment):
            message = "Unsupported parameter: 'logprobs'. What is masked in this model's texts would be read in tokens."
            raise UnsupportedParameter("logprobs", message)

    def _shown(self, messages: list[dict[str, Any]], plan: Plan, deployment: Deployment) -> _Shown:
        """The filter reads what the client wrote, the model what is left of it."""
        self._check_content(client_strings(messages), "messages")
        self._check_content(strings_in(plan.shown), "tools")
        self._check_content(strings_in(plan.template_kwargs), "chat_template_kwargs")
        if (masker := privacy.masker_of(deployment.pii)) is None:
            return _Shown(messages, plan)
        try:
            plan = privacy.masked_plan(plan, masker)
            return _Shown(privacy.masked_messages(messages, masker), plan, masker)
        except RecursionError as error:
            raise InvalidRequest("The messages are nested too deeply.", param="messages") from error

    def _prepare_chat(
        self, body: ChatCompletionRequest, messages: list[dict[str, Any]], plan: Plan, deployment: Deployment
    ) -> PreparedPrompt:
        encoder, shown = deployment.encoder, self._shown(messages, plan, deployment)
        rendered = shown.render(encoder)
        text = encoder.as_text(rendered) if deployment.takes_text else ""
        prompt = _Prompt(encoder.encode_rendered(rendered), text, body.stop)
        if (masker := shown.masker) is not None:
            stops = privacy.masked_stops(body.stop, masker)
            self._resources.metrics.observe_masked(masker.counts)
            prompt = replace(prompt, stops=stops).masked_by(masker, masker.placeholders.digest())
        return self._prepare(body, deployment, prompt, _Asked(shown.plan, opened=rendered.rstrip().endswith(OPEN)))

    def _encode_all(self, body: CompletionRequest, deployment: Deployment) -> list[_Prompt]:
        if (masker := privacy.masker_of(deployment.pii)) is None:
            return [self._encode(prompt, body.stop, deployment) for prompt in body.prompt]
        texts = [self._masked_prompt(prompt, masker) for prompt in body.prompt]
        stops = privacy.masked_stops(body.stop, masker)
        self._resources.metrics.observe_masked(masker.counts)
        restores = masker.placeholders.digest()
        return [self._encode_text(text, stops, deployment).masked_by(masker, restores) for text in texts]

    def _encode(self, prompt: str | list[int], stops: Sequence[str], deployment: Deployment) -> _Prompt:
        if isinstance(prompt, str):
            self._check_content([prompt], "prompt")
            return self._encode_text(prompt, stops, deployment)
        check_token_prompt(prompt, deployment.limits.vocab_size)
        self._check_content([deployment.tokenizer.decode(prompt)], "prompt")
        # Half a character at its end is completed by the answer.
        words = deployment.tokenizer.detokenizer().add(prompt)
        return _Prompt(prompt, deployment.encoder.ids_as_text(prompt) if deployment.takes_text else "", stops, words)

    def _encode_text(self, text: str, stops: Sequence[str], deployment: Deployment) -> _Prompt:
        token_ids = deployment.tokenizer.encode(text, add_special_tokens=True)
        return _Prompt(token_ids, text if deployment.takes_text else "", stops, text)

    def _masked_prompt(self, prompt: str | list[int], masker: Masker) -> str:
        if not isinstance(prompt, str):
            raise privacy.refuse_tokens("prompt")
        self._check_content([prompt], "prompt")
        return masker.text(prompt)

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

        reading = self._reading(body, sampling, asked, prompt)
        echoed = prompt.token_ids if echo is not None else []
        new_stream = partial(_new_stream, reading, deployment, self._filter, prompt.placeholders, echoed)

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
        self, body: GenerationFields, sampling: SamplingParams, asked: _Asked | None, prompt: _Prompt
    ) -> Reading:
        reading = Reading(
            tuple(prompt.stops),
            sampling.min_tokens,
            mask=self._filter.mask_version,
            tells_tokens=body.token_logprobs is not None,
            num_echoed=len(prompt.words) if body.echoes else 0,
            restores=prompt.restores,
        )
        if asked is None:
            return reading
        return replace(
            reading,
            is_chat=True,
            tool_names=asked.plan.names,
            opened=asked.opened,
            max_calls=None if asked.plan.parallel else 1,
            is_json=asked.plan.schema is not None,
        )

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
        features = caller.features | {feature} | body.features | (plan.features if plan else frozenset())
        job = Job(
            caller=caller.later(body.priority),
            deployment=deployment,
            prompts=prompts,
            features=features,
            head=ResponseHead(new_id(id_prefix), int(time.time()), deployment.id, deployment.fingerprint),
            layers=self._resources.entitlement.layers(principal, deployment.model, deployment.version, features),
            streamed=body.is_streamed,
            include_usage=body.include_usage,
            grammar_param=body.name_of(plan.grammar_param) if plan and plan.grammar_param else None,
            is_legacy=plan is not None and plan.is_legacy,
            num_samples=body.num_samples,
            num_wanted=body.num_choices,
        )
        return answering(job, self._resources)


def _new_stream(
    reading: Reading,
    deployment: Deployment,
    content_filter: ContentFilter,
    placeholders: Placeholders | None,
    echoed: list[int],
) -> AnswerStream:
    """Its text is that of the new tokens alone, as transformers decodes them, unless the prompt stands before."""
    form, tokenizer = deployment.form, deployment.tokenizer
    reader = form.reader(reading.tool_names, opened=reading.opened) if reading.is_chat else None
    specials = tokenizer.special_ids() if reader else {}
    visible = {specials[marker]: marker.encode() for marker in form.markers if marker in specials}
    detokenizer = tokenizer.detokenizer(visible)
    detokenizer.add(echoed)
    text = TextStream(detokenizer, reading.stop, reading.min_tokens)
    tokens = _token_teller(reading, tokenizer, visible) if reading.tells_tokens else None
    rewriting = Rewriting(content_filter, placeholders, reading.is_json, reading.tool_names)
    return AnswerStream(text, reader, form.new_call_id, reading.max_calls, tokens, rewriting.rewriter())


def _token_teller(reading: Reading, tokenizer: Tokenizer, visible: dict[int, bytes]) -> TokenTeller:
    names, own = tokenizer.pieces, tokenizer.detokenizer(visible)
    return TokenTeller(own, lambda i: names([i])[0], tells_all=not reading.is_chat, offset=reading.num_echoed)


def _asked(body: ChatCompletionRequest, deployment: Deployment) -> tuple[list[dict[str, Any]], Plan]:
    messages = [message.for_template() for message in body.messages]
    variables, takes_grammars = deployment.encoder.template.variables, deployment.limits.takes_grammars
    return messages, tools.plan(body, deployment.form, variables, takes_grammars=takes_grammars)


def _is_long(messages: list[dict[str, Any]], plan: Plan) -> bool:
    return size_of([messages, plan.shown, plan.schema, plan.template_kwargs]) > LONG_TEXT


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
