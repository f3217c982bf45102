"""A response as it is before its answer: what was asked, and what holds where nothing was."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.types import SamplingParams
from server.wire.common import ResponseHead
from server.wire.response_body import IN_PROGRESS, QUEUED, ReasoningConfig, ResponseBody
from server.wire.response_options import FunctionTool, JsonSchemaFormat
from server.wire.responses import ResponsesRequest


def opening_body(request: ResponsesRequest, head: ResponseHead, sampling: SamplingParams) -> ResponseBody:
    return ResponseBody(
        id=head.id,
        created_at=head.created,
        status=QUEUED if request.background else IN_PROGRESS,
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=head.model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=_reasoning(request),
        safety_identifier=request.safety_identifier,
        store=request.is_stored,
        temperature=sampling.temperature,
        text=_text(request),
        tool_choice=_tool_choice(request),
        tools=[_tool(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=sampling.top_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        truncation=request.truncation or "disabled",
        user=msgspec.UNSET if request.user is None else request.user,
        metadata=dict(request.metadata or {}),
    )


def _reasoning(request: ResponsesRequest) -> ReasoningConfig:
    options = request.reasoning
    return ReasoningConfig() if options is None else ReasoningConfig(options.effort, options.summary)


def _text(request: ResponsesRequest) -> dict[str, Any]:
    chosen = request.text.format if request.text else None
    form: dict[str, Any] = {"type": "text"} if chosen is None else chosen.model_dump(exclude_none=True, by_alias=True)
    if isinstance(chosen, JsonSchemaFormat):
        form["strict"] = bool(chosen.strict)
    return {"format": form, "verbosity": "medium"}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return tool.model_dump(include={"type", "name", "description", "parameters", "strict"})


def _tool_choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    return (choice or "auto") if isinstance(choice, str | None) else choice.model_dump()
