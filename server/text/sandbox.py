"""Where chat templates run: jinja2's immutable sandbox, set up as transformers does, bounded in time and size."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 16 * 1024 * 1024  # characters of a prompt, and of any text or list that an operator makes
MAX_DIGITS = 4096  # bits of a number
_WIDTHS = frozenset({"batch", "center", "indent", "slice"})  # filters that make as much as a number says
_WIDE = re.compile(r"%[^a-zA-Z%]*?(\d{5}|\*)")  # a field of a format

_limits: ContextVar[tuple[float, float]] = ContextVar("limits", default=(float("inf"), float("inf")))


class TooLong(Exception):
    """Out of time or room. No TemplateError: nothing inside jinja may swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Of this thread on the processor: how busy others keep it is not the template's fault."""
    token = _limits.set((time.monotonic() + seconds, time.thread_time() + seconds))
    try:
        yield
    finally:
        _limits.reset(token)


def check_time() -> None:
    """Raises TooLong."""
    end, of_processor = _limits.get()
    if time.monotonic() > end and time.thread_time() > of_processor:
        raise TooLong


class _Generation(Extension):
    """`{% generation %}` marks the answer for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Environment(ImmutableSandboxedEnvironment):
    """A template renders here to the same characters as in transformers, or raises TooLong."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters |= {name: _narrow(self.filters[name]) for name in _WIDTHS}
        self.filters |= {"tojson": _tojson, _TIMED: _timed, _JOINED: _joined}
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Loops look at the time, and `~` at what it makes: the sandbox has no hook for either."""
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, _TIMED)
        _replace_concats(template)
        return template

    def getattr(self, obj: Any, attribute: str) -> Any:
        check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        check_time()
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        check_time()
        if isinstance(obj, BuiltinMethodType):  # of a text, such as `center`
            _check_widths(args)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_time()
        if _size_of(operator, left, right) > MAX_OUTPUT:
            raise TooLong
        return super().call_binop(context, operator, left, right)


def _size_of(operator: str, left: Any, right: Any) -> int:
    """At most so large is what comes of it: as its length, or in bits for a number, which are dearer."""
    match operator, left, right:
        case "+", Sized(), Sized():
            return len(left) + len(right)
        case "*", Sized(), int():
            return len(left) * right
        case "*", int(), Sized():
            return left * len(right)
        case "*", int(), int():
            return (left.bit_length() + right.bit_length()) * MAX_OUTPUT // MAX_DIGITS
        case "**", int(), int():
            return left.bit_length() * right * MAX_OUTPUT // MAX_DIGITS
        case "%", str(), _:
            return MAX_OUTPUT + 1 if _WIDE.search(left) else len(left)
        case _:
            return 0


def _check_widths(args: Sequence[Any]) -> None:
    if any(isinstance(arg, int) and arg > MAX_OUTPUT // 1024 for arg in args):
        raise TooLong


def _narrow(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)  # with what jinja2 notes on it
    def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths([*args, *kwargs.values()])
        return original(value, *args, **kwargs)

    return bounded


# Names that no template can write.
_TIMED, _JOINED = "timed loop", "joined text"


def _filtered(node: nodes.Node, name: str) -> nodes.Node:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


def _replace_concats(node: nodes.Node) -> None:
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_replaced(item) for item in value])
        else:
            setattr(node, name, _replaced(value))


def _replaced(value: Any) -> Any:
    if isinstance(value, nodes.Node):
        _replace_concats(value)
    if isinstance(value, nodes.Concat):
        return _filtered(nodes.List(value.nodes).set_lineno(value.lineno), _JOINED)
    return value


def _timed(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        check_time()
        yield item


def _joined(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    if sum(map(len, texts)) > MAX_OUTPUT:
        raise TooLong
    return "".join(texts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own: no HTML escapes, keys as they come."""
    _check_widths([indent])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
