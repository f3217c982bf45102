import json
import time
from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidRequest
from server.text import chat_template, sandbox
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import TokenizerError

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<é>"}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> & 'later'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def template(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate({"default": source}, **options)


ROLES = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"


def test_variables() -> None:
    source = "{{ bos_token }}{{ eos_token }}|{{ add_generation_prompt }}|{{ tools }}|{{ thinking }}|{{ unset }}"
    made = template(source, special_tokens={"bos_token": "<s>"})
    assert made.render([USER], template_kwargs={"thinking": 1, "bos_token": "x"}) == "<s>|True|None|1|"
    assert made.render([USER], add_generation_prompt=False) == "<s>|False|None||"


def test_environment_is_set_up_as_transformers_does() -> None:
    source = "{% for m in messages %}\n    {% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}"
    assert template(source).render([USER, USER]) == "Hi\n"
    assert template("{{ tools | tojson }}").render([USER], tools=[{"é": "<&'>"}]) == '[{"é": "<&\'>"}]'
    assert template("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}").render([USER]) == '{\n "b": 1,\n "a": 2\n}'
    assert template("{% generation %}x{% endgeneration %}").render([USER]) == "x"
    assert template("{{ strftime_now('%Y') }}").render([USER]) == time.strftime("%Y")


def test_developer_is_system_where_the_template_does_not_know_it() -> None:
    messages = [{"role": "developer", "content": "be brief"}, USER]
    assert template(ROLES).render(messages) == "[system:be brief][user:Hi]"
    assert template(ROLES + "{# developer #}").render(messages) == "[developer:be brief][user:Hi]"
    assert messages[0]["role"] == "developer"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_prompt_only_where_the_client_sends_none(role: str) -> None:
    made = template(ROLES, system_prompt="ours")
    assert made.render([USER]) == "[system:ours][user:Hi]"
    assert made.render([{"role": role, "content": "theirs"}, USER]) == "[system:theirs][user:Hi]"


def test_tool_call_arguments_are_objects_or_strings_as_the_template_needs() -> None:
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    objects = "{% for c in messages[1].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    strings = "{{ 'call ' + messages[1].tool_calls[0].function.arguments }}"
    assert template(objects).render(messages) == '{"a": "<é>"}'
    assert template(strings).render(messages) == 'call {"a": "<é>"}'


@pytest.mark.parametrize("arguments", ["{", "[1]", "[" * 100_000, None])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str | None) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    source = "{{ messages[0].tool_calls[0].function.arguments }}"
    assert template(source).render([{"role": "assistant", "tool_calls": [call]}]) == str(arguments)


def test_refusals_are_the_clients_errors() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as raised:
        template("{{ raise_exception('roles must alternate') }}").render([USER])
    assert (raised.value.status, raised.value.param) == (400, "messages")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content.nothing.at.all }}",
        "{{ 'a' + messages[0].number }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.items() }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'other' %}",
        "{{ range(1000000) | list }}",
    ],
)
def test_failures_tell_nothing_of_the_inside(source: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        template(source).render([USER | {"number": 1}])
    assert raised.value.param == "messages"
    assert raised.value.message in (
        "The model's chat template can't render these messages.",
        "The messages are nested too deeply.",
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = messages[0].role %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99) %}{{ 'x' * 99999 }}{% endfor %}",
        "{% set l = range(9999) | list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%99999d' % 1 }}",
        "{{ '%*d' % (99999, 1) }}",
        "{{ 'x' | center(99999) }}",
        "{{ 'x'.ljust(99999) }}",
        "{{ [1] | tojson(indent=99999) }}",
        "{{ [1] | slice(99999) | list }}",
    ],
)
def test_limits(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TIME_LIMIT", 0.05)
    monkeypatch.setattr(chat_template, "MAX_OUTPUT", 10_000)
    monkeypatch.setattr(sandbox, "MAX_OUTPUT", 10_000)
    with pytest.raises(InvalidRequest, match="too long"):
        template(source).render([USER])


def test_small_sums_are_done_as_always() -> None:
    source = "{{ 2 ** 3 + 7 % 4 * 2 }} {{ 'a' * 3 + 'b' ~ 1 ~ none ~ nothing }} {{ [1] + [2] * 2 }}"
    assert template(source).render([USER]) == "14 aaab1None [1, 2, 2]"
    assert template("{{ '%s of 123456: 100%% %02d' % ('x', 7) }}").render([USER]) == "x of 123456: 100% 07"
    loops = "{% for i in [3, 4] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}x{% endfor %}"
    assert template(loops).render([USER]) == "1/2,2/2"
    assert template("{% for i in nothing %}a{% else %}none{% endfor %}").render([USER]) == "none"


def test_too_many_messages() -> None:
    with pytest.raises(InvalidRequest, match="At most 2048 messages"):
        template(ROLES).render([USER] * 2049)


def test_no_template(tmp_path: Path) -> None:
    made = ChatTemplate.load(tmp_path, model="base-1b")
    assert not made
    with pytest.raises(InvalidRequest, match="base-1b has no chat template; use /v1/completions"):
        made.render([USER])


def test_where_templates_are_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "A"}))
    assert ChatTemplate.load(tmp_path).render([USER]) == "A"

    named = [{"name": "default", "template": "B"}, {"name": "tool_use", "template": "C"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path).render([USER]) == "B"
    assert ChatTemplate.load(tmp_path).render([USER], tools=[TOOL]) == "C"

    (tmp_path / "chat_template.jinja").write_text("D {{ bos_token }}")
    assert ChatTemplate.load(tmp_path, {"bos_token": "<s>"}).render([USER]) == "D <s>"


@pytest.mark.parametrize("value", [7, [], [{"name": "other", "template": "x"}], ["x"], "{% if %}", "{% bad %}"])
def test_broken_templates_stop_the_start(tmp_path: Path, value: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(TokenizerError, match=r"chat.template"):
        ChatTemplate.load(tmp_path)


def test_arguments_that_came_as_strings_reach_a_template_that_wants_them_exactly() -> None:
    call = {"function": {"name": "f", "arguments": '{ "a":1}'}}
    source = "{{ 'call ' + messages[0].tool_calls[0].function.arguments }}"
    assert template(source).render([{"role": "assistant", "tool_calls": [call]}]) == 'call { "a":1}'


def test_what_is_changed_is_the_client_s_and_not_the_operator_s() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": "b"}'}}
    seen: list[Any] = []

    def change(messages: Any) -> Any:
        seen.extend(messages)
        return [message | {"content": "changed"} for message in messages]

    made = template(ROLES, system_prompt="ours")
    assert made.render([{"role": "user", "tool_calls": [call]}], change=change) == "[system:ours][user:changed]"
    assert seen[0]["tool_calls"][0]["function"]["arguments"] == {"a": "b"}


def test_contents_only() -> None:
    messages = [USER, {"role": "assistant", "content": None}, {"role": "user", "content": "é!"}]
    assert ChatTemplate.contents_only().render(messages) == "Hié!"
    assert ChatTemplate.contents_only("Be brief. ").render(messages) == "Be brief. Hié!"
    assert ChatTemplate.contents_only("ours").render([{"role": "developer", "content": "theirs"}]) == "theirs"


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be <kind> & brief."}, USER],
    "turns": [USER, {"role": "assistant", "content": "Hello\n\n"}, {"role": "user", "content": "  bye 🦙 "}],
    "long": [{"role": "system", "content": "s"}, *[USER, {"role": "assistant", "content": "a"}] * 4, USER],
    "bad order": [{"role": "assistant", "content": "a"}, USER, USER],
    "thinking": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}, USER],
    "calls": [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": "<é>"}}}],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"},
    ],
}


@pytest.mark.shared
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_renders_as_transformers_does(name: str, tools: list[dict[str, Any]] | None, data: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    paths = sorted((data / "templates").glob("*.jinja"))
    assert len(paths) >= 13
    for path in paths:
        source = path.read_text()
        try:
            [expected], _ = render_jinja_template(
                [CONVERSATIONS[name]], tools=tools, chat_template=source, add_generation_prompt=True, **tokens
            )
        except Exception:  # whatever the reference does not render, we refuse
            with pytest.raises(InvalidRequest):
                template(source, special_tokens=tokens).render(CONVERSATIONS[name], tools=tools)
        else:
            assert template(source, special_tokens=tokens).render(CONVERSATIONS[name], tools=tools) == expected, (
                path.name
            )
