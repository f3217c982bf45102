"""What a model is shown of a request that holds personal data, and what comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from threading import get_ident
from typing import Any
from unittest.mock import Mock

import pytest

from engines.types import Task, VectorInfo
from server.cache.key import key_of
from server.errors import InvalidRequest, UnsupportedParameter
from server.generation import Generation
from server.job import PreparedPrompt
from server.privacy import detector_of
from server.settings_sections import ModelSettings, PiiSettings
from server.text.answer import AnswerStream, joined
from server.text.chat_template import ChatTemplate
from server.text.content_filter import ContentFilter
from server.text.formats.format import HERMES, Format
from server.text.pii.detector import Detector
from server.text.pii.masker import Masker
from server.text.pii.placeholders import Placeholders
from server.text.prompt import ChatEncoder
from server.text.rewriting import Rewriting
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer
from server.vectors import VectorPipeline
from server.wire.embeddings import EmbeddingRequest
from server.wire.rerank import RerankRequest
from tests.server.house import House as PaperHouse
from tests.server.house import PaperWorker, read, read_whole
from tests.server.test_pipeline import LIMITS, House

DETECTOR = Detector(patterns={"employee": "EMP-[0-9]{6}"})
MAIL = "bob@example.com"
# Everything that a template may read.
ALL = (
    "{{ tools | tojson if tools }}|"
    "{% for m in messages %}{{ m.role }}:{{ m.name }}:{{ m.content }}:{{ m.reasoning_content }}:"
    "{{ m.tool_call_id }}:{{ m.tool_calls | tojson if m.tool_calls }}|{% endfor %}{{ effort }}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "send",
        "description": f"Not to {MAIL}",
        "parameters": {"type": "object", "properties": {"to": {"enum": [MAIL, "nobody"]}}},
    },
}


def house(template: str = "", form: Format | None = None, **more: Any) -> House:
    if template:
        more["encoder"] = ChatEncoder(ByteTokenizer(), ChatTemplate({"default": template}))
    return House(pii=DETECTOR, **more, **({"form": form} if form else {}))


def shown(prompt: PreparedPrompt) -> str:
    """By the engine, which gets token ids: a byte each."""
    return bytes(prompt.token_ids).decode()


def answered(prompt: PreparedPrompt, text: str) -> Any:
    """What the client reads when the model writes this, a byte a token."""
    stream = prompt.new_stream()
    return joined([*(stream.add([byte]) for byte in text.encode()), stream.finish()])


def masked_counts(house: House) -> dict[str, int]:
    (family,) = house.metrics.pii_masked.collect()
    return {s.labels["kind"]: int(s.value) for s in family.samples if s.name.endswith("_total")}


async def test_a_chat() -> None:
    made = house()
    (prompt,) = (await made.chat(f"Mail {MAIL} or EMP-123456, not {MAIL}", stop=[MAIL])).job.prompts
    assert shown(prompt) == "Mail <EMAIL_1> or <EMPLOYEE_1>, not <EMAIL_1>"
    assert answered(prompt, "Dear <EMPLOYEE_1>, <EMAIL_2> <EMA").text == "Dear EMP-123456, <EMAIL_2> <EMA"
    stopped = answered(prompt, "Dear <EMAIL_1>")
    assert (stopped.text, stopped.stop) == ("Dear ", MAIL)
    assert masked_counts(made) == {"email": 3, "employee": 1}
    assert MAIL not in repr(prompt)


async def test_a_chat_without_any() -> None:
    (prompt,) = (await house(masked=()).chat("hello")).job.prompts
    assert prompt.new_stream().rewriter is None
    (other,) = (await House().chat(MAIL)).job.prompts
    assert shown(other) == MAIL


async def test_prompts_that_differ_in_what_is_masked_share_no_recorded_answer() -> None:
    keys = set()
    for mail in (MAIL, "eve@example.com", MAIL):
        job = (await house().chat(f"Mail {mail}")).job
        assert shown(job.prompts[0]) == "Mail <EMAIL_1>"
        keys.add(key_of(job, b"secret"))
    assert len(keys) == 2


async def test_everything_that_a_client_says() -> None:
    made = house(ALL, HERMES)
    call = {"name": "send", "arguments": '{"to": "bob\\u0040example.com"}'}
    split = [{"type": "text", "text": part} for part in ("split: bob@", "example.com")]
    messages = [
        {"role": "system", "content": f"I am {MAIL}"},
        {"role": "user", "content": split, "name": MAIL},
        {
            "role": "assistant",
            "reasoning_content": f"{MAIL}?",
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {"role": "tool", "content": f"sent to {MAIL}", "tool_call_id": "call_1"},
    ]
    generation = await made.chat(messages=messages, tools=[TOOL], chat_template_kwargs={"effort": f"as {MAIL}"})
    (prompt,) = generation.job.prompts
    text = shown(prompt)
    assert "bob" not in text
    assert text.count("<EMAIL_1>") == masked_counts(made)["email"] == 9
    assert "call_1" in text
    piece = answered(prompt, '<tool_call>{"name": "send", "arguments": {"to": "<EMAIL_1>"}}</tool_call>')
    assert [call.name for call in piece.calls if call.name] == ["send"]
    assert json.loads("".join(call.arguments for call in piece.calls)) == {"to": MAIL}


async def test_a_schema_holds_the_answer_to_what_the_model_is_shown() -> None:
    made = house(ALL, limits=replace(LIMITS, takes_grammars=True))
    schema = {"type": "object", "properties": {"to": {"const": MAIL}}}
    fields = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    (prompt,) = (await made.chat("hello", response_format=fields)).job.prompts
    assert prompt.sampling.grammar is not None
    assert MAIL not in prompt.sampling.grammar.text
    assert "<EMAIL_1>" in prompt.sampling.grammar.text
    assert json.loads(answered(prompt, '{"to": "\\u003cEMAIL_1>"}').text) == {"to": MAIL}


async def test_what_is_nested_too_deeply_is_refused() -> None:
    call = {"name": "f", "arguments": "[" * 600 + "]" * 600}
    message = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": call}]}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        await house().chat(messages=[message])


async def test_the_filter_reads_what_the_client_wrote() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await house(terms=["bob@"]).chat(f"to {MAIL}")
    assert (caught.value.code, caught.value.param) == ("content_filter", "messages")
    await house(terms=["EMAIL_1"]).chat(f"to {MAIL}")
    with pytest.raises(InvalidRequest) as caught:
        await house(ALL, terms=["bob@"]).chat("hello", chat_template_kwargs={"effort": MAIL})
    assert (caught.value.code, caught.value.param) == ("content_filter", "chat_template_kwargs")


async def test_completions_share_their_placeholders() -> None:
    made = house()
    prompts = (await made.complete([f"a {MAIL}", f"eve@x.com and {MAIL}"], stop=["eve@x.com"])).job.prompts
    assert [shown(prompt) for prompt in prompts] == ["a <EMAIL_1>", "<EMAIL_2> and <EMAIL_1>"]
    assert answered(prompts[0], "<EMAIL_1>, <EMAIL_2>").text == f"{MAIL}, "
    assert masked_counts(made) == {"email": 4}


async def test_what_was_taken_out_is_digested_once_however_many_prompts_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = Mock(side_effect=lambda self: b"digest")
    monkeypatch.setattr(Placeholders, "digest", lambda self: digests(self))
    prompts = (await house().complete([MAIL] * 5)).job.prompts
    assert [prompt.reading.restores for prompt in prompts] == [b"digest"] * 5
    assert digests.call_count == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": [*range(1200)]}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "x " * 10_001}}}},
        {"chat_template_kwargs": {"effort": "x " * 10_001}},
    ],
)
async def test_whatever_is_long_is_masked_beside_the_event_loop(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set[int]()
    find = Detector.find
    monkeypatch.setattr(Detector, "find", lambda self, text: threads.add(get_ident()) or find(self, text))
    limits = replace(LIMITS, takes_grammars=True, context=200_000)
    await house(ALL, HERMES, limits=limits).chat(MAIL, **asked)
    assert threads
    assert get_ident() not in threads


async def test_token_ids_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="Token ids are not accepted") as caught:
        await house().complete([[1, 2]])
    assert caught.value.param == "prompt"
    assert (await House().complete([[1, 2]])).job.prompts[0].token_ids == [1, 2]


async def test_logprobs_are_refused_whatever_is_in_the_text() -> None:
    tells = replace(LIMITS, tells_logprobs=True)
    await House(masked=(), limits=tells).chat("hello", logprobs=True)
    with pytest.raises(UnsupportedParameter, match="is masked"):
        await House(masked=(), limits=tells, pii=DETECTOR).chat("hello", logprobs=True)


def test_which_models_mask() -> None:
    def masks(model: bool | None, enabled: bool) -> bool:
        settings = ModelSettings(name="m", engine="fake", pii=model)
        return detector_of(settings, PiiSettings(enabled=enabled)) is not None

    assert [masks(model, enabled) for model in (None, True, False) for enabled in (False, True)] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


# --- while it runs


def restoring(made: PaperHouse, *, streamed: bool) -> Generation:
    """A generation whose engine's answer has placeholders in it."""
    masker = Masker(DETECTOR)
    masker.text(MAIL)
    rewriting = Rewriting(ContentFilter([], ["secret"]), masker.placeholders)

    def new_stream() -> AnswerStream:
        return AnswerStream(TextStream(ByteTokenizer().detokenizer()), rewriter=rewriting.rewriter())

    generation = made.generation(streamed=streamed, sampling={"max_tokens": len(SCRIPT), "temperature": 0.0})
    prompts = [replace(prompt, new_stream=new_stream) for prompt in generation.job.prompts]
    return type(generation)(replace(generation.job, prompts=prompts), made.resources)


SCRIPT = list(b"to <EMAIL_1>: a secret!")


@pytest.mark.parametrize("dies_after", range(0, len(SCRIPT), 3))
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_moves_to_another_engine(dies_after: int, streamed: bool) -> None:
    """Also in the middle of a placeholder, or of a term."""
    first, second = PaperWorker(answer=SCRIPT, dies_with=[dies_after]), PaperWorker(answer=SCRIPT)
    made = PaperHouse(worker=first, others=(second,))
    generation = restoring(made, streamed=streamed)
    assert await (read if streamed else read_whole)(generation) == f"to {MAIL}: a ***!"
    assert second.requests
    await made.check_nothing_left()


# --- vectors


async def test_texts_of_which_vectors_are_wanted() -> None:
    """Each is masked by itself: its vector does not depend on what it was sent with."""
    made = house(task=Task.EMBED, vectors=VectorInfo(dim=4))
    pipeline, caller = VectorPipeline(made.pipeline.router, ContentFilter(), made.resources), made.caller
    body = EmbeddingRequest.model_validate({"model": "m", "input": [f"a {MAIL}", f"eve@x.com {MAIL}"]})
    (prompt,) = (await pipeline.embed(caller, body)).job.prompts
    assert shown(prompt) == "a <EMAIL_1><EMAIL_1> <EMAIL_2>"
    with pytest.raises(InvalidRequest, match="Token ids are not accepted"):
        await pipeline.embed(caller, EmbeddingRequest.model_validate({"model": "m", "input": [[1, 2]]}))
    rerank = RerankRequest.model_validate({"model": "m", "query": MAIL, "documents": [f"x {MAIL}"]})
    (compared,) = (await pipeline.compare(caller, "m", rerank.comparison, "rerank")).job.prompts
    assert shown(compared) == "<EMAIL_1>x <EMAIL_1>"
