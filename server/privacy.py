"""Personal data in requests: what of a request is masked before its model sees it. See docs/privacy.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from server.errors import InvalidRequest
from server.settings_sections import ModelSettings, PiiSettings
from server.tools import Plan

if TYPE_CHECKING:  # what they import is an optional dependency
    from server.text.pii.detector import Detector
    from server.text.pii.masker import Masker


def detector_of(model: ModelSettings, settings: PiiSettings) -> Detector | None:
    """None where nothing is masked."""
    if not (settings.enabled if model.pii is None else model.pii):
        return None
    from server.text.pii.detector import Detector

    return Detector(settings.kinds, settings.patterns)


def masker_of(detector: Detector | None) -> Masker | None:
    """For one request."""
    if detector is None:
        return None
    from server.text.pii.masker import Masker

    return Masker(detector)


def refuse_tokens(param: str) -> InvalidRequest:
    """Personal data is found in text: a placeholder can't be put among tokens that a client has made."""
    message = f"Token ids are not accepted: this model is not shown personal data. Send '{param}' as text."
    return InvalidRequest(message, param=param)


def masked_plan(plan: Plan, masker: Masker) -> Plan:
    """All but the functions' names. The model is held to the masked schemas: they are restored with its answer."""
    shown = [_masked_tool(tool, masker) for tool in plan.shown]
    parameters = {tool["function"]["name"]: tool["function"].get("parameters") for tool in shown}
    return replace(
        plan,
        shown=shown,
        callable=[f.model_copy(update={"parameters": parameters[f.name]}) for f in plan.callable],
        schema=None if plan.schema is None else masker.json_text(plan.schema),
        template_kwargs=masker.json(plan.template_kwargs),
    )


def _masked_tool(tool: Mapping[str, Any], masker: Masker) -> dict[str, Any]:
    function = {key: value if key == "name" else masker.json(value) for key, value in tool["function"].items()}
    return {**tool, "function": function}


def masked_messages(messages: Sequence[Mapping[str, Any]], masker: Masker) -> list[dict[str, Any]]:
    """Contents, reasoning, names of participants and arguments of tool calls; ids and functions' names stay."""
    return [_masked_message(message, masker) for message in messages]


def _masked_message(message: Mapping[str, Any], masker: Masker) -> dict[str, Any]:
    masked = dict(message)
    for key in ("content", "reasoning_content", "name"):
        if key in message and not (key == "name" and message["role"] == "tool"):
            masked[key] = masker.text(message[key])
    if "tool_calls" in message:
        masked["tool_calls"] = [_masked_call(call, masker) for call in message["tool_calls"]]
    return masked


def _masked_call(call: Mapping[str, Any], masker: Masker) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": masker.json_text(function["arguments"])}}


def masked_stops(stops: Sequence[str], masker: Masker) -> list[str]:
    """They are sought in what the model writes. Masked last, so that the numbers of the prompt's do not depend on
    them."""
    return [masker.text(stop) for stop in stops]
