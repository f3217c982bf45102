"""What a request asks for besides words: tools, a choice among them, an answer of a schema, reasoning.

It is decided here against what the model's template and engine can do, before anything runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.types import Grammar, GrammarKind
from server import schemas
from server.errors import InvalidRequest, UnsupportedParameter
from server.text.formats.format import Format, Wanted
from server.text.formats.syntax import ToolGrammar
from server.wire.chat import ChatCompletionRequest
from server.wire.tools import (
    AllowedToolsChoice,
    Function,
    FunctionReference,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
)

ANY_OBJECT = '{"type": "object"}'
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
SWITCHES = ("enable_thinking", "thinking")  # variables by which templates are told whether to reason


@dataclass(slots=True, frozen=True)
class Plan:
    """`shown` are the tools that the model is told of, `callable` those that it may call.

    `must_call`: nothing but calls is an answer. `schema`: JSON is, of this schema. `param` asked for it.
    """

    shown: Sequence[Mapping[str, Any]] = ()
    callable: Sequence[Function] = ()
    must_call: bool = False
    parallel: bool = True
    is_legacy: bool = False
    schema: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.callable)

    @property
    def grammar_param(self) -> str | None:
        if self.callable:
            return "functions" if self.is_legacy else "tools"
        return "response_format" if self.schema is not None else None

    @property
    def features(self) -> frozenset[str]:
        """What it uses of what keys can be kept from, and plans can limit."""
        used = {"tools": bool(self.callable), "structured_output": self.schema is not None}
        return frozenset(name for name, is_used in used.items() if is_used)

    def grammar(self, form: Format, specials: Mapping[str, int], *, opened: bool) -> Grammar | None:
        """Raises InvalidRequest for a schema that is too large."""
        if self.schema is not None and not self.callable and not (form.thinks or opened or form.is_harmony):
            return Grammar(GrammarKind.JSON_SCHEMA, self.schema)
        if self.schema is None and not self.callable:
            return None
        tools = [ToolGrammar(f.name, schemas.for_lark(_parameters(f), "tools", strict=f.strict)) for f in self.callable]
        inner = (
            None if self.schema is None else schemas.for_lark(json.loads(self.schema), "response_format", strict=True)
        )
        lark = form.grammar(Wanted(tools, self.must_call, self.parallel, inner), specials, opened=opened)
        return None if lark is None else Grammar(GrammarKind.LARK, lark)


def plan(body: ChatCompletionRequest, form: Format, variables: frozenset[str], *, takes_grammars: bool) -> Plan:
    """`variables` are those that the model's template reads. Raises InvalidRequest, UnsupportedParameter."""
    schema = _schema(body)
    if schema is not None and not takes_grammars:
        raise _engine_cannot("response_format")
    kwargs = _template_kwargs(body, variables)
    functions, is_legacy = _functions(body)
    _check_choices(body)
    choice = body.function_call if is_legacy else body.tool_choice
    param = "function_call" if is_legacy else "tool_choice"
    allowed, must_call = _chosen(functions, choice, param)
    if not allowed:
        return Plan(schema=schema, template_kwargs=kwargs)
    _check_can_call(form, variables, "functions" if is_legacy else "tools")
    if must_call and not takes_grammars:
        raise _engine_cannot(param)
    return Plan(
        shown=[{"type": "function", "function": f.model_dump(exclude_unset=True)} for f in functions],
        callable=allowed,
        must_call=must_call,
        parallel=not is_legacy and body.parallel_tool_calls is not False and not _is_named(choice),
        is_legacy=is_legacy,
        schema=None if must_call else schema,
        template_kwargs=kwargs,
    )


def _schema(body: ChatCompletionRequest) -> str | None:
    match body.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT
        case JsonSchemaFormat(json_schema=named):
            return ANY_OBJECT if named.json_schema is None else schemas.as_json(named.json_schema, "response_format")
        case _:
            return None


def _functions(body: ChatCompletionRequest) -> tuple[list[Function], bool]:
    if body.tools and body.functions:
        raise InvalidRequest("'tools' and 'functions' are both given; send one of them.", param="functions")
    functions = [tool.function for tool in body.tools or ()] or list(body.functions or ())
    for name, count in Counter(function.name for function in functions).items():
        if count > 1:
            raise InvalidRequest(f"The function '{name}' is given {count} times.", param=_param(body))
    return functions, bool(body.functions)


def _check_choices(body: ChatCompletionRequest) -> None:
    choices = ("tool_choice", body.tool_choice, "tools", body.tools), (
        "function_call", body.function_call, "functions", body.functions,
    )  # fmt: skip
    for param, choice, source, given in choices:
        # "none" for the other family's functions would leave them callable
        is_needed = choice not in (None, "none", "auto") or (choice is not None and (body.tools or body.functions))
        if is_needed and not given:
            raise InvalidRequest(f"'{param}' is only allowed when '{source}' is given.", param=param)


def _param(body: ChatCompletionRequest) -> str:
    return "functions" if body.functions else "tools"


def _chosen(functions: Sequence[Function], choice: Any, param: str) -> tuple[list[Function], bool]:
    """Those that may be called, and whether one of them must be."""
    match choice:
        case "none":
            return [], False
        case "required":
            return list(functions), True
        case NamedTool(function=reference) | (FunctionReference() as reference):
            return _pick(functions, [reference.name], param), True
        case AllowedToolsChoice(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            return _pick(functions, names, param), allowed.mode == "required"
        case _:
            return list(functions), False


def _pick(functions: Sequence[Function], names: Sequence[str], param: str) -> list[Function]:
    by_name = {function.name: function for function in functions}
    for name in names:
        if name not in by_name:
            raise InvalidRequest(f"'{param}' names the function '{name}', which is not among the tools.", param=param)
    return [by_name[name] for name in dict.fromkeys(names)]


def _is_named(choice: Any) -> bool:
    return isinstance(choice, NamedTool | FunctionReference)


def _check_can_call(form: Format, variables: frozenset[str], param: str) -> None:
    if "tools" not in variables:
        raise UnsupportedParameter(
            param, f"Unsupported parameter: '{param}'. This model's chat template knows no tools."
        )
    if form.tool_reader is None:
        message = f"Unsupported parameter: '{param}'. This model writes tool calls in a form that is not known here."
        raise UnsupportedParameter(param, message)


def _engine_cannot(param: str) -> UnsupportedParameter:
    message = f"Unsupported parameter: '{param}'. The engine of this model can't hold an answer to a grammar."
    return UnsupportedParameter(param, message)


def _parameters(function: Function) -> Mapping[str, Any]:
    """OpenAI's default: a function without parameters takes none."""
    return function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _template_kwargs(body: ChatCompletionRequest, variables: frozenset[str]) -> dict[str, Any]:
    given = dict(body.chat_template_kwargs or {})
    for name in given:
        if name not in variables or name in ("messages", "tools", "documents", "add_generation_prompt"):
            message = f"Unsupported parameter: 'chat_template_kwargs'. This model's template has no '{name[:64]}'."
            raise UnsupportedParameter("chat_template_kwargs", message)
    if body.reasoning_effort is not None:
        given |= _effort(body.reasoning_effort, variables)
    return given


def _effort(effort: str, variables: frozenset[str]) -> dict[str, Any]:
    if effort not in _EFFORTS:
        message = f"Invalid value for 'reasoning_effort': expected one of {', '.join(_EFFORTS)}."
        raise InvalidRequest(message, param="reasoning_effort")
    if "reasoning_effort" in variables and effort != "none":
        return {"reasoning_effort": effort}
    switches = {name: False for name in SWITCHES if name in variables}
    if effort == "none" and (switches or "reasoning_effort" not in variables):
        return switches
    raise UnsupportedParameter(
        "reasoning_effort",
        f"Unsupported parameter: 'reasoning_effort'. This model's template has no such effort: \"{effort}\".",
    )
