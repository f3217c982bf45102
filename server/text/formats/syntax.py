"""How a format writes calls, as a grammar for models that are held to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.text.formats.thinking import CLOSE, OPEN

TEXT = "TEXT"  # any text of ordinary tokens


@dataclass(slots=True, frozen=True)
class ToolGrammar:
    """A function that may be called, and its parameters as the text of a JSON schema."""

    name: str
    schema: str


@dataclass(slots=True, frozen=True)
class CallSyntax:
    """A section of calls is `begin (call (separator call)*) end`; a call is its `head`, arguments, `tail`.

    `{name}` in the head is the function's name, `{json_name}` the same as a JSON string. Free text turns into a section
    where `trigger`, with which every section begins, appears; "" where nothing marks it.
    """

    head: str
    tail: str
    separator: str = ""
    begin: str = ""
    end: str = ""
    trigger: str = ""
    may_blank: bool = False  # a blank may follow the trigger: tokenizers in SentencePiece's manner put one there

    def head_of(self, name: str) -> str:
        return self.head.replace("{json_name}", json.dumps(name)).replace("{name}", name)


class GrammarWriter:
    """Writes Lark. `specials` are the tokens of the vocabulary that no text can make, by their strings."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self._specials = specials
        names = sorted(specials, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def literal(self, text: str) -> str:
        """Elements that are just this text; "" for none."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(self._part(part) for part in parts if part)

    def _part(self, part: str) -> str:
        return f"<[{self._specials[part]}]>" if part in self._specials else json.dumps(part, ensure_ascii=False)

    def is_special(self, text: str) -> bool:
        return text in self._specials

    def document(self, start: str, rules: Sequence[str]) -> str:
        return "\n".join(["%llguidance {}", f"start: {start}", *rules, f"{TEXT}: /(.|\\n)*/"])

    def until(self, rule: str, marker: str) -> str:
        """A rule for free text that ends with the first such marker."""
        if self.is_special(marker):
            return f"{rule}: {TEXT} {self.literal(marker)}"
        return f"{rule}[lazy]: /(.|\\n)*/ {json.dumps(marker, ensure_ascii=False)}"


def thinking_rules(writer: GrammarWriter, *, opened: bool) -> tuple[str, list[str]]:
    """Reasoning that may come first, with a blank after it; what stands for it in `start`, and its rules."""
    body = writer.until("thoughts", CLOSE)
    if opened:
        return "thoughts blank", [body, "blank: /\\n{0,2}/"]
    return "(thinking blank)?", [f"thinking: {writer.literal(OPEN)} thoughts", body, "blank: /\\n{0,2}/"]


def section_rules(writer: GrammarWriter, syntax: CallSyntax, tools: Sequence[ToolGrammar], parallel: bool) -> list[str]:
    """`section` is a whole one, `rest` what follows the trigger."""
    rules = [f"args_{i}: %json {tool.schema}" for i, tool in enumerate(tools)]
    calls = [_call(writer, syntax.head_of(tool.name), i, syntax.tail) for i, tool in enumerate(tools)]
    rules.append(f"call: {' | '.join(calls)}")
    more = f"({writer.literal(syntax.separator)} call)*" if parallel else ""
    end = writer.literal(syntax.end)
    begin = syntax.begin.removeprefix(syntax.trigger)
    in_begin = bool(syntax.begin)
    blank = '(" ")?' if syntax.may_blank else ""
    opening = f"{writer.literal(syntax.trigger)} {blank} {writer.literal(begin)}" if in_begin else ""
    rules.append(f"section: {opening} call {more} {end}")
    if syntax.trigger:
        heads = [syntax.head_of(tool.name).removeprefix("" if in_begin else syntax.trigger) for tool in tools]
        firsts = " | ".join(_call(writer, head, i, syntax.tail) for i, head in enumerate(heads))
        rules.append(f"first: {firsts}")
        rules.append(f"rest: {blank} {writer.literal(begin)} first {more} {end}")
        rules.append(writer.until("trigger", syntax.trigger))
    return rules


def _call(writer: GrammarWriter, head: str, index: int, tail: str) -> str:
    return f"({writer.literal(head)} args_{index} {writer.literal(tail)})"
