"""What a chat request asks for besides words, against what its model can do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from engines.types import GrammarKind
from server.errors import InvalidRequest, UnsupportedParameter
from server.text.formats.format import HARMONY, HERMES, PLAIN, Format
from server.tools import Plan, plan
from server.wire.body import parse_json
from server.wire.chat import ChatCompletionRequest

F, G = ({"name": name, "parameters": {"type": "object", "properties": {}}} for name in "fg")
TOOLS = [{"type": "function", "function": function} for function in (F, G)]
VARIABLES = frozenset({"messages", "tools"})


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def schema(value: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": value, **fields}}


def plan_of(
    form: Format = HERMES, variables: frozenset[str] = VARIABLES, takes_grammars: bool = True, **fields: Any
) -> Plan:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return plan(
        parse_json(json.dumps(body).encode(), ChatCompletionRequest), form, variables, takes_grammars=takes_grammars
    )


@pytest.mark.parametrize(
    ("choice", "names", "must_call", "parallel"),
    [
        (None, "fg", False, True),
        ("auto", "fg", False, True),
        ("required", "fg", True, True),
        (named("g"), "g", True, False),
        (allowed("auto", "g"), "g", False, True),
        (allowed("required", "g", "f"), "fg", True, True),
    ],
)
def test_choices(choice: Any, names: str, must_call: bool, parallel: bool) -> None:
    made = plan_of(tools=TOOLS, tool_choice=choice)
    assert (made.names, made.must_call, made.parallel) == (frozenset(names), must_call, parallel)
    assert made.shown == TOOLS
    assert made.grammar_param == "tools"
    assert not plan_of(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False).parallel


def test_without_a_choice_of_calls_the_model_is_told_of_no_tools() -> None:
    assert plan_of(PLAIN, frozenset(), tools=TOOLS, tool_choice="none") == Plan()
    assert plan_of(PLAIN, frozenset(), tools=[]) == Plan()


def test_functions_are_tools_of_a_legacy_name() -> None:
    made = plan_of(functions=[F, G], function_call={"name": "g"})
    assert made.features == {"tools"}
    assert (made.names, made.must_call, made.parallel, made.is_legacy) == ({"g"}, True, False, True)
    assert made.grammar_param == "functions"
    assert plan_of(functions=[F, G]).names == {"f", "g"}


EFFORT = frozenset({"reasoning_effort"})
REFUSED: list[tuple[dict[str, Any], type[InvalidRequest], str]] = [
    ({"tool_choice": "required"}, InvalidRequest, "tool_choice"),
    ({"function_call": {"name": "f"}}, InvalidRequest, "function_call"),
    ({"function_call": {"name": "f"}, "tools": TOOLS}, InvalidRequest, "function_call"),
    ({"tool_choice": named("f"), "functions": [F]}, InvalidRequest, "tool_choice"),
    ({"function_call": "none", "tools": TOOLS}, InvalidRequest, "function_call"),
    ({"tool_choice": "none", "functions": [F]}, InvalidRequest, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": named("h")}, InvalidRequest, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": allowed("auto", "h")}, InvalidRequest, "tool_choice"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, InvalidRequest, "tools"),
    ({"tools": TOOLS, "functions": [F]}, InvalidRequest, "functions"),
    ({"tools": TOOLS, "variables": frozenset()}, UnsupportedParameter, "tools"),
    ({"tools": TOOLS, "form": PLAIN}, UnsupportedParameter, "tools"),
    ({"functions": [F], "form": PLAIN}, UnsupportedParameter, "functions"),
    ({"tools": TOOLS, "tool_choice": "required", "takes_grammars": False}, UnsupportedParameter, "tool_choice"),
    ({"response_format": {"type": "json_object"}, "takes_grammars": False}, UnsupportedParameter, "response_format"),
    ({"reasoning_effort": "low"}, UnsupportedParameter, "reasoning_effort"),
    ({"reasoning_effort": "most"}, InvalidRequest, "reasoning_effort"),
    ({"reasoning_effort": "none", "variables": EFFORT}, UnsupportedParameter, "reasoning_effort"),
    ({"chat_template_kwargs": {"x": 1}}, UnsupportedParameter, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, UnsupportedParameter, "chat_template_kwargs"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, InvalidRequest, "tools.0.function.name"),
    ({"tools": [{"type": "web_search"}]}, InvalidRequest, "tools.0.type"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, InvalidRequest, "tool_choice"),
    ({"response_format": {"type": "json_schema"}}, InvalidRequest, "response_format.json_schema"),
    ({"response_format": schema({}, name="a b")}, InvalidRequest, "response_format.json_schema.name"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "kind", "param"), REFUSED, ids=range(len(REFUSED)))
def test_what_makes_no_sense_or_cannot_be_done_is_refused_by_name(
    fields: dict[str, Any], kind: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_of(**fields)
    assert (type(caught.value), caught.value.param) == (kind, param)


@pytest.mark.parametrize(
    ("effort", "variables", "expected"),
    [
        ("low", {"reasoning_effort"}, {"reasoning_effort": "low"}),
        ("none", {"enable_thinking"}, {"enable_thinking": False}),
        ("none", {"thinking"}, {"thinking": False}),
        ("none", set(), {}),
    ],
)
def test_reasoning_effort_is_what_the_template_knows(effort: str, variables: set[str], expected: Any) -> None:
    assert plan_of(variables=frozenset(variables), reasoning_effort=effort).template_kwargs == expected


def test_names_of_the_template_may_be_given() -> None:
    given = {"enable_thinking": False}
    made = plan_of(variables=frozenset({"enable_thinking"}), chat_template_kwargs=given)
    assert made.template_kwargs == given


def test_a_schema_alone_is_a_grammar_of_its_own() -> None:
    made = plan_of(response_format=schema({"type": "dict"}))
    grammar = made.grammar(HERMES, {}, opened=False)
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.text)) == (GrammarKind.JSON_SCHEMA, {"type": "object"})
    assert made.grammar_param == "response_format"
    assert plan_of().grammar(HERMES, {}, opened=False) is None


@pytest.mark.parametrize("form", [replace(HERMES, thinks=True), HARMONY])
def test_a_model_that_reasons_first_has_its_schema_after_that(form: Format) -> None:
    grammar = plan_of(form, response_format={"type": "json_object"}).grammar(form, {}, opened=False)
    assert grammar is not None
    assert grammar.kind is GrammarKind.LARK


def test_only_a_strict_function_is_held_to_what_no_grammar_can_do() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"uniqueItems": True}, "strict": None}}
    texts = []
    for strict in (None, True):
        tool["function"] = {"name": "f", "parameters": {"uniqueItems": True}, "strict": strict}
        grammar = plan_of(tools=[tool]).grammar(HERMES, {}, opened=False)
        assert grammar is not None
        texts.append(grammar.text)
    assert ["lenient" in text for text in texts] == [True, False]
