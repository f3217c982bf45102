"""What a format's grammar lets a model write: real tokenizers, the texts that real templates render."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from llguidance import LLMatcher, LLTokenizer

from engines.grammars.compiler import compile_grammar, open_tokenizer
from engines.types import Grammar, GrammarKind
from server.schemas import for_lark
from server.text.formats import format as formats
from server.text.formats.format import Format, Wanted
from server.text.formats.syntax import ToolGrammar
from server.text.tokenizer import HFTokenizer, load_tokenizer
from tests.grammar_files import BUNDLED
from tests.scale import IS_SOAK

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [ToolGrammar(name, for_lark(CITY, "tools", strict=True)) for name in ("get_weather", "f.g-h")]
GOOD, BAD = '{"city": "Rome"}', '{"town": "Rome"}'
THINKING = replace(formats.HERMES, thinks=True)
SEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
ANALYSIS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"

# A call of get_weather with {0}, then what a second call puts between and behind.
CALLS: dict[str, str] = {
    "hermes": '<tool_call>\n{{"name": "get_weather", "arguments": {0}}}\n</tool_call>',
    "llama": '{{"name": "get_weather", "parameters": {0}}}',
    "mistral": '[TOOL_CALLS][{{"name": "get_weather", "arguments": {0}}}]',
    "deepseek": f"{SEEK[0]}{SEEK[1]}get_weather{SEEK[2]}{{0}}{SEEK[3]}{SEEK[4]}",
    "harmony": "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{0}",
}
TWO: dict[str, str] = {
    "hermes": CALLS["hermes"] + "\n" + CALLS["hermes"],
    "llama": CALLS["llama"] + "; " + CALLS["llama"],
    "mistral": CALLS["mistral"][:-1] + ', {{"name": "f.g-h", "arguments": {0}}}]',
    "deepseek": CALLS["deepseek"][: -len(SEEK[4])] + f"{SEEK[1]}f.g-h{SEEK[2]}{{0}}{SEEK[3]}{SEEK[4]}",
}
FORMATS: list[tuple[Format, str | None]] = [
    (formats.HERMES, None),
    (formats.LLAMA, None),
    (formats.DEEPSEEK, None),
    (formats.MISTRAL, "mistral-v3"),
]
if IS_SOAK:  # vocabularies of 150,000 and 200,000 tokens
    FORMATS += [(THINKING, "qwen3"), (formats.HARMONY, "gpt-oss")]


class Judge:
    """Whether a grammar takes a text, as the tokenizer cuts it."""

    def __init__(self, form: Format, tokenizer: HFTokenizer) -> None:
        self.form = form
        self._tokenizer = tokenizer
        self._trie: LLTokenizer = open_tokenizer(tokenizer.vocabulary())

    def matcher(self, wanted: Wanted, *, opened: bool = False) -> LLMatcher:
        lark = self.form.grammar(wanted, self._tokenizer.special_ids(), opened=opened)
        assert lark is not None
        return compile_grammar(self._trie, Grammar(GrammarKind.LARK, lark))

    def takes(self, text: str, wanted: Wanted, *, opened: bool = False) -> bool:
        """The whole text, and that it may end there."""
        matcher = self.matcher(wanted, opened=opened)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


@pytest.fixture(scope="module", params=FORMATS, ids=lambda param: param[0].name)
def judge(request: pytest.FixtureRequest, shared_tokenizer: Callable[[str], HFTokenizer]) -> Judge:
    form, name = request.param
    return Judge(form, load_tokenizer(BUNDLED) if name is None else shared_tokenizer(f"tokenizers/{name}"))


def test_calls_that_are_demanded(judge: Judge) -> None:
    call, wanted = CALLS[judge.form.name], Wanted(TOOLS, must_call=True)
    assert judge.takes(call.format(GOOD), wanted)
    assert not judge.takes(call.format(BAD), wanted)
    assert not judge.takes(call.format(GOOD).replace("get_weather", "get_wether"), wanted)
    assert not judge.takes("Hello", wanted)


def test_several_calls_where_they_are_allowed(judge: Judge) -> None:
    if judge.form.name == "harmony":  # one message, one call
        return
    two = TWO[judge.form.name].format(GOOD)
    assert judge.takes(two, Wanted(TOOLS, must_call=True))
    assert not judge.takes(two, Wanted(TOOLS, must_call=True, parallel=False))


def test_calls_that_the_model_may_make(judge: Judge) -> None:
    call = CALLS[judge.form.name]
    if judge.form.syntax is not None and not judge.form.syntax.trigger and not judge.form.is_harmony:
        assert judge.form.grammar(Wanted(TOOLS), {}, opened=False) is None  # nothing marks where a call begins
        return
    words = "<|channel|>final<|message|>Hello." if judge.form.is_harmony else "Hello."
    assert judge.takes(words, Wanted(TOOLS))
    before = "" if judge.form.is_harmony else words
    for parallel in (True, False):
        assert judge.takes(before + call.format(GOOD), Wanted(TOOLS, parallel=parallel))
        assert not judge.takes(before + call.format(BAD), Wanted(TOOLS, parallel=parallel))


def test_reasoning_comes_before_what_is_demanded(judge: Judge) -> None:
    wanted, call = Wanted(TOOLS, must_call=True), CALLS[judge.form.name].format(GOOD)
    if judge.form.is_harmony:
        assert judge.takes(ANALYSIS + call, wanted)
    else:
        assert judge.takes("<think>\nhm\n</think>\n\n" + call, wanted) == judge.form.thinks
        assert judge.takes("hm</think>\n\n" + call, wanted, opened=True)


def test_json_in_the_place_of_words(judge: Judge) -> None:
    wanted = Wanted(schema=for_lark(CITY, "response_format", strict=True))
    before = "<|channel|>final<|message|>" if judge.form.is_harmony else "hm</think>\n"
    assert judge.takes(before + GOOD, wanted, opened=True)
    assert not judge.takes(before + BAD, wanted, opened=True)
    assert not judge.takes(before + GOOD + " So.", wanted, opened=True)


def test_what_a_schema_says_inside_a_grammar_is_text(judge: Judge) -> None:
    """No string of a client's ends the rule that it stands in."""
    odd = {"type": "object", "properties": {'a"\n start: "x"': {"const": "}\n%json %llguidance {}"}}}
    tool = ToolGrammar("f", for_lark(odd, "tools", strict=True))
    judge.matcher(Wanted([tool], must_call=True))
    assert "\n" not in tool.schema
    assert json.loads(tool.schema)["properties"] == odd["properties"]
