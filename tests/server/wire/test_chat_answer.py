"""What chat completions answer, in the types of OpenAI's own client."""

from __future__ import annotations

import json

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from engines.types import FinishReason, Usage
from server.text.answer import CallPiece
from server.wire.chat_answer import chat_completion, chunk_encoder
from server.wire.common import Answer, Call, ResponseHead

HEAD = ResponseHead("chatcmpl-1", 1, "m@1", "fp")
CALLS = (Call("call_1", "f", '{"a": 1}'), Call("call_2", "g", "{}"))
USAGE = Usage(prompt_tokens=3, completion_tokens=9, reasoning_tokens=4)


def test_calls_and_reasoning_of_a_whole_answer() -> None:
    body = chat_completion(HEAD, [Answer("", FinishReason.TOOL_CALLS, "hm", CALLS)], USAGE)
    made = ChatCompletion.model_validate_json(body)
    (choice,) = made.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.model_extra == {"reasoning_content": "hm"}
    assert [call.model_dump() for call in choice.message.tool_calls or ()] == [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in CALLS
    ]
    assert made.usage is not None
    assert made.usage.completion_tokens_details is not None
    assert made.usage.completion_tokens_details.reasoning_tokens == 4


def test_an_answer_of_words_has_no_other_keys() -> None:
    message = json.loads(chat_completion(HEAD, [Answer("hi", FinishReason.STOP)], USAGE))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "hi", "refusal": None, "annotations": []}


def test_a_call_to_a_legacy_function() -> None:
    body = chat_completion(HEAD, [Answer("", FinishReason.TOOL_CALLS, "", CALLS[:1])], USAGE, is_legacy=True)
    (choice,) = ChatCompletion.model_validate_json(body).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert (choice.message.function_call.name, choice.message.tool_calls) == ("f", None)


def test_chunks_of_calls_and_reasoning() -> None:
    encoder = chunk_encoder(False)(HEAD)
    chunks = [
        encoder.reasoning_chunk("hm"),
        encoder.call_chunk(CallPiece(1, "", "call_2", "g")),
        encoder.call_chunk(CallPiece(1, '{"a')),
        encoder.finish_chunk(FinishReason.TOOL_CALLS),
    ]
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    begun = {"index": 1, "function": {"name": "g", "arguments": ""}, "id": "call_2", "type": "function"}
    assert deltas == [
        {"reasoning_content": "hm"},
        {"tool_calls": [begun]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a'}}]},
        {},
    ]
    assert ChatCompletionChunk.model_validate_json(chunks[3]).choices[0].finish_reason == "tool_calls"


def test_chunks_of_a_call_to_a_legacy_function() -> None:
    encoder = chunk_encoder(True)(HEAD)
    delta = json.loads(encoder.call_chunk(CallPiece(0, "", "call_1", "f")))["choices"][0]["delta"]
    assert delta == {"function_call": {"name": "f", "arguments": ""}}
    last = ChatCompletionChunk.model_validate_json(encoder.finish_chunk(FinishReason.TOOL_CALLS))
    assert last.choices[0].finish_reason == "function_call"
