"""A request to `/v1/messages` as the chat completion that it is. It was validated as what it came as, and is not again.

A tool's result is a message of its own there; what follows one another in one role is one turn, as Anthropic has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from server.errors import UnsupportedParameter
from server.registry import Deployment
from server.tools import SWITCHES
from server.wire.chat import ChatCompletionRequest, ContentPart, FunctionCall, Message, Role, ToolCall
from server.wire.message_blocks import (
    Block,
    InputMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.wire.messages import (
    CustomTool,
    FreeChoice,
    MessagesRequest,
    NamedChoice,
    PromptFields,
    Thinking,
    ThinkingDisabled,
)
from server.wire.tools import Function, FunctionReference, JsonSchemaFormat, NamedSchema, NamedTool, Tool

BETWEEN_MESSAGES = "\n\n"  # of one turn
FAILED = "Error: "  # before the result of a tool that failed
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_MERGED = ("system", "user", "assistant")


def as_chat(body: PromptFields, deployment: Deployment) -> ChatCompletionRequest:
    """Raises UnsupportedParameter where the model has no such way of thinking."""
    fields: dict[str, Any] = {"model": body.model, "messages": list(_merged(_messages(body)))}
    fields |= _tools(body) | _output(body)
    if switches := _thinking(body.thinking, deployment):
        fields["chat_template_kwargs"] = switches
    if isinstance(body, MessagesRequest):
        fields |= _sampling(body)
    return ChatCompletionRequest.model_construct(**fields)


def _sampling(body: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences or [],
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stream": body.stream,
    }


# --- messages


def _messages(body: PromptFields) -> Iterator[Message]:
    if body.system:
        yield _message("system", content=[_part(block.text) for block in body.system])
    for message in body.messages:
        yield from _answered(message) if message.role == "assistant" else _told(message)


def _told(message: InputMessage) -> Iterator[Message]:
    """What a user or the system says, in its order."""
    parts: list[ContentPart] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            if parts:
                yield _message(message.role, content=parts)
            parts = []
            yield _message("tool", tool_call_id=block.tool_use_id, content=_result(block))
        elif isinstance(block, TextBlock):
            parts.append(_part(block.text))
    if parts:
        yield _message(message.role, content=parts)


def _result(block: ToolResultBlock) -> list[ContentPart]:
    parts = [_part(text.text) for text in block.content or ()]
    return [_part(FAILED), *parts] if block.is_error else parts


def _answered(message: InputMessage) -> Iterator[Message]:
    texts = [_part(block.text) for block in message.content if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in message.content if isinstance(block, ThinkingBlock)]
    yield _message(
        "assistant",
        content=texts,
        reasoning_content="".join(thoughts) or None,
        tool_calls=_calls(message.content),
    )


def _calls(blocks: Sequence[Block]) -> list[ToolCall]:
    return [
        ToolCall.model_construct(
            id=block.id,
            type="function",
            function=FunctionCall.model_construct(
                name=block.name, arguments=json.dumps(block.input, ensure_ascii=False)
            ),
        )
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]


def _merged(messages: Iterable[Message]) -> Iterator[Message]:
    turn: Message | None = None
    for message in messages:
        if turn is not None and turn.role == message.role and turn.role in _MERGED:
            turn = _joined(turn, message)
            continue
        if turn is not None:
            yield turn
        turn = message
    if turn is not None:
        yield turn


def _joined(first: Message, second: Message) -> Message:
    contents = [content for content in (first.content, second.content) if content]
    between = [_part(BETWEEN_MESSAGES)] if len(contents) == 2 else []
    thoughts = [thought for thought in (first.reasoning_content, second.reasoning_content) if thought]
    return _message(
        first.role,
        content=[*(first.content or ()), *between, *(second.content or ())],
        reasoning_content=BETWEEN_MESSAGES.join(thoughts) or None,
        tool_calls=[*(first.tool_calls or ()), *(second.tool_calls or ())],
    )


def _message(role: Role, **fields: Any) -> Message:
    return Message.model_construct(role=role, **fields)


def _part(text: str) -> ContentPart:
    return ContentPart.model_construct(type="text", text=text)


# --- what is asked for besides words


def _tools(body: PromptFields) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.tools:
        fields["tools"] = [Tool.model_construct(type="function", function=_function(tool)) for tool in body.tools]
    match body.tool_choice:
        case None:
            return fields
        case NamedChoice(name=name):
            named = FunctionReference.model_construct(name=name)
            fields["tool_choice"] = NamedTool.model_construct(type="function", function=named)
        case choice:
            fields["tool_choice"] = _CHOICES[choice.type]
    if isinstance(body.tool_choice, FreeChoice | NamedChoice) and body.tool_choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _function(tool: CustomTool) -> Function:
    """Examples of inputs are told to the model where templates have a place for them: in the description."""
    examples = [json.dumps(example, ensure_ascii=False) for example in tool.input_examples or ()]
    told = [tool.description or "", *(["Examples of inputs:", *examples] if examples else [])]
    fields: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if any(told):
        fields["description"] = "\n".join(filter(None, told))
    if tool.strict is not None:
        fields["strict"] = tool.strict
    return Function.model_construct(**fields)


def _output(body: PromptFields) -> dict[str, Any]:
    config = body.output_config
    fields: dict[str, Any] = {}
    if config is not None and config.effort is not None:
        fields["reasoning_effort"] = config.effort
    if config is not None and config.format is not None:
        schema = NamedSchema.model_construct(json_schema=config.format.json_schema)
        fields["response_format"] = JsonSchemaFormat.model_construct(type="json_schema", json_schema=schema)
    return fields


def _thinking(asked: Thinking | None, deployment: Deployment) -> dict[str, bool]:
    """The template's switches. Without any, a model that thinks can't be kept from it, and no other can be made to."""
    if asked is None:
        return {}
    variables, form = deployment.encoder.template.variables, deployment.form
    wanted = not isinstance(asked, ThinkingDisabled)
    if switches := {name: wanted for name in SWITCHES if name in variables}:
        return switches
    if wanted != (form.thinks or form.is_harmony):
        what = "does not think" if wanted else "can't be kept from thinking"
        raise UnsupportedParameter("thinking", f"Unsupported parameter: 'thinking'. This model {what}.")
    return {}
