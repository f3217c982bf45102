"""A model's chat template: messages to one prompt text.

Templates are the operator's files, never a client's: `template_trial` tries them before they are used. A client
chooses the messages only. What bounds a render: at most MAX_MESSAGES messages, MAX_OUTPUT characters, and TIME_LIMIT
seconds of the processor, looked at whenever the template reads an attribute, calls something, puts out text or goes
round a loop. No operator makes anything larger than MAX_OUTPUT; `sandbox` has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.meta import find_undeclared_variables

from server.errors import InvalidRequest
from server.text.sandbox import MAX_OUTPUT, Environment, TooLong, check_time, time_limit
from server.text.template_trial import try_templates
from server.text.tokenizer_files import TokenizerError, read_json

Message = Mapping[str, Any]

MAX_MESSAGES = 2048  # templates build lists by `a + [b]`, quadratic in their number
TIME_LIMIT = 1.0  # seconds


class _Refused(TemplateError):
    """The template's own raise_exception: its message is for the client."""


def _raise_exception(message: str) -> None:
    raise _Refused(message)


_ENVIRONMENT = Environment()
_ENVIRONMENT.globals["raise_exception"] = _raise_exception


@dataclass(slots=True, frozen=True)
class ChatTemplate:
    """`sources` by name: "default", and "tool_use" where a model has another one for tools. Empty: no template.

    `system_prompt` is the operator's, put first when the client sends no system or developer message.
    """

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    model: str = "the model"
    system_prompt: str = ""
    _compiled: dict[str, Template] = field(init=False, default_factory=dict)
    _variables: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            try:
                self._compiled[name] = _ENVIRONMENT.from_string(source)
                self._variables.update(find_undeclared_variables(_ENVIRONMENT.parse(source)))
            except (TemplateError, RecursionError, SyntaxError) as error:  # the last two: it is nested too deeply
                raise TokenizerError(f"the chat template of {self.model} is not valid: {error}") from error

    @classmethod
    def load(
        cls,
        folder: str | Path,
        special_tokens: Mapping[str, str] | None = None,
        *,
        model: str = "the model",
        system_prompt: str = "",
    ) -> ChatTemplate:
        """From chat_template.jinja, else from tokenizer_config.json. `special_tokens` are the tokenizer's.

        Raises TokenizerError, for templates that do harm too.
        """
        sources = _read_sources(Path(folder))
        if sources:
            try_templates(sources, special_tokens or {}, model)
        return cls(sources, special_tokens or {}, model, system_prompt)

    @classmethod
    def contents_only(cls, system_prompt: str = "") -> ChatTemplate:
        """The messages' contents and nothing else: for the deterministic engine."""
        source = "{% for m in messages %}{{ m.content or '' }}{% endfor %}"
        return cls({"default": source}, system_prompt=system_prompt)

    @property
    def variables(self) -> frozenset[str]:
        """The names that the templates read and that a request may give a value."""
        return frozenset(self._variables)

    def __bool__(self) -> bool:
        """Whether there is a template at all."""
        return bool(self.sources)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        change: Callable[[Any], Any] = lambda messages: messages,
    ) -> str:
        """The prompt. Raises InvalidRequest when the template refuses the messages, fails, or takes too long.

        `change` is applied to the client's messages as the template will see them: with the arguments of tool calls
        as objects, or as the strings they came as. The operator's system prompt is not theirs.
        """
        if not self.sources:
            raise InvalidRequest(f"{self.model} has no chat template; use /v1/completions", param="model")
        if len(messages) > MAX_MESSAGES:
            raise InvalidRequest(f"At most {MAX_MESSAGES} messages are accepted.", param="messages")
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        variables = dict(template_kwargs or {}) | dict(self.special_tokens)
        variables |= {"tools": tools or None, "documents": None, "add_generation_prompt": add_generation_prompt}
        parsed = [parse_arguments(message) for message in messages]
        try:
            return self._run(name, change(parsed), variables)
        except InvalidRequest as error:
            if parsed == list(messages) or isinstance(error.__cause__, _Refused | TooLong):
                raise
            return self._run(name, change(messages), variables)  # a template that wants arguments as strings

    def _run(self, name: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        prepared = self._prepare(messages, self.sources[name])
        return _run(self._compiled[name], {**variables, "messages": prepared})

    def _prepare(self, messages: Sequence[Message], source: str) -> list[dict[str, Any]]:
        copies = [dict(message) for message in messages]
        if self.system_prompt and not any(m.get("role") in ("system", "developer") for m in copies):
            copies.insert(0, {"role": "system", "content": self.system_prompt})
        if "developer" not in source:
            for message in copies:
                if message.get("role") == "developer":
                    message["role"] = "system"
        return copies


def _run(template: Template, variables: dict[str, Any]) -> str:
    try:
        with time_limit(TIME_LIMIT):
            return _collect(template, variables)
    except _Refused as error:
        raise InvalidRequest(str(error)[:500], param="messages") from error
    except TooLong as error:
        raise InvalidRequest("The messages take too long to render.", param="messages") from error
    except RecursionError as error:
        raise InvalidRequest("The messages are nested too deeply.", param="messages") from error
    except Exception as error:  # whatever a template's expressions raise: the messages don't fit it
        raise InvalidRequest("The model's chat template can't render these messages.", param="messages") from error


def _collect(template: Template, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    room = MAX_OUTPUT
    for piece in template.generate(variables):
        check_time()
        room -= len(piece)
        if room < 0:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def parse_arguments(message: Message) -> Message:
    """Tool calls with their arguments as objects: OpenAI sends strings of JSON, most templates want objects."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_parse_call(call) for call in calls]}


def _parse_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return {**call, "function": function}


def _read_sources(folder: Path) -> dict[str, str]:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: not readable as UTF-8 text") from error
    path = folder / "tokenizer_config.json"
    value = read_json(path).get("chat_template")
    if value is None:
        return {}
    sources = {"default": value} if isinstance(value, str) else _named_sources(value)
    if "default" not in sources:
        raise TokenizerError(f"{path}: chat_template is neither a string nor a list with one named 'default'")
    return sources


def _named_sources(value: Any) -> dict[str, str]:
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError):
        return {}
