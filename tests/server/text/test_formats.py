"""The formats of tool calls and reasoning: what is read of an answer, however its text is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.formats import format as formats
from server.text.formats.events import Arguments, CallBegin, Content, Event, Reader, Reasoning, merged

NAMES = ("f", "get_weather")


def reader_of(name: str, *, opened: bool = False) -> Reader:
    form = {"plain-thinking": formats.replace(formats.PLAIN, thinks=True)}.get(name) or next(
        f for f in (formats.HERMES, formats.LLAMA, formats.MISTRAL, formats.DEEPSEEK, formats.HARMONY) if f.name == name
    )
    if name == "hermes":
        form = formats.replace(form, thinks=True)
    reader = form.reader(NAMES, opened=opened)
    assert reader is not None
    return reader


def read(reader: Reader, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in reader.feed(piece)]
    return merged(events + reader.finish())


CALL = [CallBegin("f"), Arguments('{"a": 1, "b": "}]<"}')]
ARGS = '{"a": 1, "b": "}]<"}'
SEEK = f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜>"
CASES: list[tuple[str, str, list[Event]]] = [
    ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {ARGS}}}\n</tool_call>', CALL),
    ("hermes", f'Let me see.\n<tool_call>{{"arguments": {ARGS}, "name": "f"}}</tool_call>\n',
     [Content("Let me see."), *CALL]),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {json.dumps(ARGS)}}}</tool_call>', CALL),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "f", "arguments": null}</tool_call>',
     [CallBegin("f"), Arguments("{}"), CallBegin("f"), Arguments("{}")]),
    ("hermes", "<think>\nhm, <tool\n</think>\n\nHi  <b>", [Reasoning("hm, <tool"), Content("Hi  <b>")]),
    ("hermes", "<tool_call>no json</tool_call> x", [Content("<tool_call>no json</tool_call>"), Content("x")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a', [CallBegin("f"), Arguments('{"a')]),
    ("hermes", "<tool_call", [Content("<tool_call")]),
    ("hermes", "words \n ", [Content("words \n ")]),
    ("hermes", "<thin", [Content("<thin")]),
    ("llama", f'{{"name": "f", "parameters": {ARGS}}}', CALL),
    ("llama", f'<|python_tag|>{{"type": "function", "name": "f", "parameters": {ARGS}}}; '
     '{"name": "get_weather", "parameters": {}}',
     [*CALL, CallBegin("get_weather"), Arguments("{}")]),
    ("llama", '{"name": "Ann", "age": 3}', [Content('{"name": "Ann", "age": 3}')]),
    ("llama", '{"age": 3}, "x"', [Content('{"age": 3}, "x"')]),
    ("llama", ' Well, {"name": "f"}', [Content(' Well, {"name": "f"}')]),
    ("llama", '{"na', [Content('{"na')]),
    ("mistral", f'[TOOL_CALLS][{{"name": "f", "arguments": {ARGS}}}, {{"name": "f", "arguments": {ARGS}, '
     '"id": "abcdefghi"}]', CALL + CALL),
    ("mistral", f"Yes.[TOOL_CALLS]f[ARGS]{ARGS}[TOOL_CALLS]f{ARGS}", [Content("Yes."), *CALL, *CALL]),
    ("mistral", "A [TOOL", [Content("A [TOOL")]),
    ("deepseek", f"<think>ab</think>So<｜tool▁calls▁begin｜>{SEEK}{SEEK}<｜tool▁calls▁end｜>",
     [Reasoning("ab"), Content("So"), *CALL, *CALL]),
    ("deepseek", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{ARGS}\n"
     "```<｜tool▁call▁end｜>\n<｜tool▁calls▁end｜>", CALL),
    ("harmony", f"<|channel|>analysis<|message|>I think<|end|><|start|>assistant<|channel|>commentary to=functions.f "
     f"<|constrain|>json<|message|>{ARGS}<|call|>", [Reasoning("I think"), *CALL]),
    ("harmony", f" to=functions.f<|channel|>commentary json<|message|>{ARGS}", CALL),
    ("harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b <c<|return|>",
     [Reasoning("a"), Content("b <c")]),
    ("harmony", "no format at all", [Content("no format at all")]),
    ("plain-thinking", "<think>a", [Reasoning("a")]),
    ("plain-thinking", "  <think> a </think> ", [Reasoning("a")]),
    ("plain-thinking", " a<think>", [Content(" a<think>")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_an_answer_is_read(name: str, text: str, expected: list[Event]) -> None:
    assert read(reader_of(name), [text]) == merged(expected)
    assert read(reader_of(name), list(text)) == merged(expected)


def test_reasoning_that_the_prompt_has_begun() -> None:
    for pieces in (["so\n</think>\n\nyes"], list("so\n</think>\n\nyes")):
        assert read(reader_of("plain-thinking", opened=True), pieces) == [Reasoning("so"), Content("yes")]


def test_which_text_is_reasoning_is_known_while_it_comes() -> None:
    reader, said = reader_of("hermes"), []
    for piece in ("<think>", "a", "b", "</think>", "c"):
        said.append(reader.is_reasoning)
        reader.feed(piece)
    assert said == [False, True, True, True, False]


PARTS = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|channel|>",
     "<|message|>", "<|end|>", "<|start|>", "to=functions.f ", "analysis", "<｜tool▁calls▁begin｜>",
     "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
     '{"name": "f", "arguments": ', '{"name": "f"', '{"a": [1, "}"]}', "}", "]", "[",
     '"', "\\", ",", " ", "\n", "<", "hello", "1"]
)  # fmt: skip


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "deepseek", "harmony"])
@given(parts=st.lists(PARTS, max_size=14), cuts=st.lists(st.integers(0, 150), max_size=12))
def test_how_a_text_is_cut_changes_nothing(name: str, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    ends = [*sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert read(reader_of(name), pieces) == read(reader_of(name), [text])


@pytest.mark.parametrize(
    ("file", "name", "thinks"),
    [
        ("Qwen-Qwen3-0.6B", "hermes", True), ("Qwen-Qwen2.5-7B-Instruct", "hermes", False),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes", False),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral", False), ("openai-gpt-oss-120b", "harmony", False),
        ("deepseek-ai-DeepSeek-V3.1", "deepseek", True), ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek", True),
        ("microsoft-Phi-3.5-mini-instruct", "plain", False), ("Qwen3-Coder", "plain", False),
        ("Kimi-K2-Instruct", "plain", False), ("GLM-4.6", "plain", True),
    ],
)  # fmt: skip
def test_the_format_is_known_by_the_template(data: Path, file: str, name: str, thinks: bool) -> None:
    source = (data / "templates" / f"{file}.jinja").read_text(encoding="utf-8")
    form = formats.of_templates({"default": source})
    assert (form.name, form.thinks) == (name, thinks)


def test_llama_is_known_by_its_template() -> None:
    source = '<|start_header_id|>{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}'
    assert formats.of_templates({"default": source}).name == "llama"


@pytest.mark.parametrize(
    ("form", "check"), [(formats.MISTRAL, str.isalnum), (formats.HERMES, lambda i: i.startswith("call_"))]
)
def test_ids_of_calls(form: formats.Format, check: Callable[[str], bool]) -> None:
    ids = {form.new_call_id() for _ in range(20)}
    assert len(ids) == 20
    assert all(map(check, ids))
