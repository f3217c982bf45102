"""The formats that models answer in, and which one a chat template speaks."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from server.text.formats import deepseek, harmony, hermes, llama, mistral
from server.text.formats.events import Reader
from server.text.formats.syntax import TEXT, CallSyntax, GrammarWriter, ToolGrammar, section_rules, thinking_rules
from server.text.formats.thinking import OPEN, PlainReader, ThinkingReader

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(slots=True, frozen=True)
class Wanted:
    """What an answer may be: words, JSON of `schema` in their place, calls of `tools`. `must_call`: calls alone."""

    tools: Sequence[ToolGrammar] = ()
    must_call: bool = False
    parallel: bool = True
    schema: str | None = None


@dataclass(slots=True, frozen=True)
class Format:
    """`markers` are the strings of special tokens that its reader has to see; others leave no text."""

    name: str
    tool_reader: Callable[[Collection[str]], Reader] | None = None  # of the functions' names
    syntax: CallSyntax | None = None
    markers: tuple[str, ...] = ()
    call_id_length: int = 0  # of ids that are alphanumeric alone; 0: OpenAI's form
    thinks: bool = False  # may reason between <think> and </think> first
    is_harmony: bool = False

    def reader(self, tool_names: Collection[str], *, opened: bool) -> Reader | None:
        """None for an answer that is its text. `opened`: the prompt has begun the reasoning."""
        if self.is_harmony:
            return harmony.HarmonyReader()
        uses_tools = bool(tool_names) and self.tool_reader is not None
        inner = self.tool_reader(tool_names) if uses_tools and self.tool_reader is not None else PlainReader()
        if self.thinks or opened:
            return ThinkingReader(inner, opened=opened)
        return inner if uses_tools else None

    def new_call_id(self) -> str:
        if self.call_id_length:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(self.call_id_length))
        return f"call_{secrets.token_hex(12)}"

    def grammar(self, wanted: Wanted, specials: Mapping[str, int], *, opened: bool) -> str | None:
        """The Lark of what is wanted; None where the format marks no place from which on it could be held to."""
        writer = GrammarWriter(specials)
        if self.is_harmony:
            return _harmony_grammar(writer, wanted)
        thoughts, rules = thinking_rules(writer, opened=opened) if self.thinks or opened else ("", [])
        words = TEXT
        if wanted.schema is not None:
            words, rules = "answer", [*rules, f"answer: %json {wanted.schema}"]
        if not wanted.tools or self.syntax is None:
            return writer.document(f"{thoughts} {words}", rules)
        rules += section_rules(writer, self.syntax, wanted.tools, wanted.parallel)
        if wanted.must_call:
            return writer.document(f"{thoughts} section", rules)
        if wanted.schema is not None:
            return writer.document(f"{thoughts} (answer | section)", rules)
        if not self.syntax.trigger:
            return None
        calls = f"(trigger rest)* {TEXT}" if wanted.parallel else f"({TEXT} | trigger rest)"
        return writer.document(f"{thoughts} {calls}", rules)


def _harmony_grammar(writer: GrammarWriter, wanted: Wanted) -> str:
    message, end = writer.literal(harmony.MESSAGE), writer.literal(harmony.END)
    channel, start = writer.literal(harmony.CHANNEL), writer.literal(harmony.START)
    rules = [f'analysis: {channel} "analysis" {message} {TEXT} {end} {start} "assistant"']
    final = TEXT if wanted.schema is None else f"%json {wanted.schema}"
    rules.append(f'final: {channel} "final" {message} {final}')
    for i, tool in enumerate(wanted.tools):
        header = f"{harmony.CHANNEL}commentary to=functions.{tool.name} {harmony.CONSTRAIN}json{harmony.MESSAGE}"
        rules.append(f"call_{i}: {writer.literal(header)} %json {tool.schema}")
    calls = " | ".join(f"call_{i}" for i in range(len(wanted.tools)))
    last = calls if wanted.must_call else " | ".join(filter(None, ["final", calls]))
    return writer.document(f"analysis* ({last})", rules)


HERMES = Format(
    "hermes",
    lambda names: hermes.HermesReader(),
    CallSyntax(
        head='<tool_call>\n{"name": {json_name}, "arguments": ',
        tail="}\n</tool_call>",
        separator="\n",
        trigger=hermes.OPEN,
    ),
    markers=(hermes.OPEN, hermes.CLOSE),
)
LLAMA = Format(
    "llama",
    llama.LlamaReader,
    CallSyntax(head='{"name": {json_name}, "parameters": ', tail="}", separator="; "),
    markers=(llama.TAG,),
)
MISTRAL = Format(
    "mistral",
    lambda names: mistral.MistralReader(),
    CallSyntax(
        head='{"name": {json_name}, "arguments": ',
        tail="}",
        separator=", ",
        begin=mistral.OPEN + "[",
        end="]",
        trigger=mistral.OPEN,
        may_blank=True,
    ),
    markers=(mistral.OPEN, mistral.ARGS, mistral.CALL_ID),
    call_id_length=9,  # its templates refuse others
)
DEEPSEEK = Format(
    "deepseek",
    lambda names: deepseek.DeepSeekReader(),
    CallSyntax(
        head=f"{deepseek.CALL}{{name}}{deepseek.SEPARATOR}",
        tail=deepseek.CALL_END,
        begin=deepseek.SECTION,
        end=deepseek.SECTION_END,
        trigger=deepseek.SECTION,
    ),
    markers=(
        deepseek.SECTION,
        deepseek.SECTION_END,
        deepseek.CALL,
        deepseek.SEPARATOR,
        deepseek.CALL_END,
    ),
    thinks=True,
)
HARMONY = Format("harmony", lambda names: harmony.HarmonyReader(), CallSyntax("", ""), harmony.MARKERS, is_harmony=True)
DEEPSEEK_R1_HEAD = f"{deepseek.CALL}function{deepseek.SEPARATOR}{{name}}\n```json\n"
PLAIN = Format("plain")

# What a template must hold and what it must not, the surest sign first.
_SIGNS: tuple[tuple[Format, tuple[str, ...], tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|message|>"), ()),
    (DEEPSEEK, (deepseek.CALL, deepseek.SEPARATOR), ()),
    (MISTRAL, (mistral.OPEN, "tools"), ()),
    (HERMES, (hermes.OPEN, "tools"), ("<function=", "<arg_key>")),
    (LLAMA, ('"parameters"', "tools", "<|start_header_id|>"), (hermes.OPEN,)),
)


def of_templates(sources: Mapping[str, str]) -> Format:
    """By the text of a model's chat templates. PLAIN: it knows no tools, or writes calls in no way that we read."""
    text = "\n".join(sources.values())
    found = next((form for form, signs, others in _SIGNS if _fits(text, signs, others)), PLAIN)
    if found is DEEPSEEK and "```json" in text:
        found = replace(found, syntax=CallSyntax(
            head=DEEPSEEK_R1_HEAD, tail="\n```" + deepseek.CALL_END, separator="\n",
            begin=deepseek.SECTION, end=deepseek.SECTION_END, trigger=deepseek.SECTION,
        ))  # fmt: skip
    return replace(found, thinks=found.thinks or OPEN in text, markers=(*found.markers, OPEN, "</think>"))


def _fits(text: str, signs: Sequence[str], others: Sequence[str]) -> bool:
    return all(sign in text for sign in signs) and not any(other in text for other in others)
