"""Which templates stop the start, and that the process that finds out is bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.text.chat_template import ChatTemplate
from server.text.template_trial import TOO_LARGE, TOO_LONG, try_templates
from server.text.tokenizer_files import TokenizerError


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ range(99999) | map('string') | join('x' * 999999) }}", TOO_LARGE),
        ("{{ 'x' * 10 ** 9 }}", TOO_LARGE),
        ("{% set l = [1] * 9999 %}" + "{{ l | sum }}" * 200_000, TOO_LONG),
        ("{% if tools %}{{ 9 ** (10 ** 9) }}{% endif %}", TOO_LARGE),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "not valid"),
        ("{% if %}", "not valid"),
    ],
)
def test_a_template_that_does_harm_is_refused(source: str, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem) as raised:
        try_templates({"default": source}, {}, "the model m")
    assert "the chat template of the model m" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["{{ messages[0].content }}", "{{ raise_exception('no tools') }}", ""])
def test_others_are_not(source: str) -> None:
    """What a template refuses is its own affair."""
    try_templates({"default": source, "tool_use": source}, {"bos_token": "<s>"}, "m")


def test_a_model_with_such_a_template_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 'x' * 10 ** 9 }}"}))
    with pytest.raises(TokenizerError, match=TOO_LARGE):
        ChatTemplate.load(tmp_path)
