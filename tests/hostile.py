# ruff: noqa: E501, F541 - tables, one case beside the other
"""Patterns, schemas and chat templates that are meant to take all the time and memory there is."""

from __future__ import annotations

from typing import Any

FACTORS = (10, 100, 1000, 5000, 20_000)


def patterns() -> list[str]:
    """A hundred and more regular expressions: backtracking, counting, alternation, classes, and what is none."""
    fixed = [
        *(
            "^(a+)+$",
            "^(a|a)*$",
            "^(a|aa)+$",
            "^(a*)*$",
            "^(.*a){30}$",
            "^(([a-z])+.)+[A-Z]([a-z])+$",
            "(?=a)b",
            "(a)\\1",
        ),
        *(
            "(",
            ")",
            "[",
            "a{",
            "a{2,1}",
            "*",
            "+a",
            "(?P<x>",
            "(?i)" * 50,
            "\\",
            "\\p{Nope}",
            "[z-a]",
            "(?#",
            "^$" * 500,
        ),
        *(
            "\\p{L}{500}",
            "[^\\x00-\\U0010ffff]",
            "(?<!a)b",
            "\\b\\B" * 100,
            "[[:alpha:]]",
            "\\u{110000}",
            "a{,}",
        ),
    ]
    made = []
    for n in FACTORS:
        made += [
            f"a{{{n}}}", f"(a{{0,{n}}}){{0,{n}}}", f"((a{{0,{n}}}){{0,{n}}}){{0,{n}}}", f"^(.{{{n}}})+$", f".*x.{{{n}}}y.*",
            f"[a-z]{{1,{n}}}[0-9]{{1,{n}}}", f"(\\w+\\s?){{{n}}}", f"(a|b|ab){{{n}}}", f"(?:[^\"]{{0,{n}}}){{{n}}}", f"x*" * n,
            "(" * n + "a" + ")" * n, "(a?)" * n + "a" * n, ".*" * n, "|".join(f"w{i}" for i in range(n)),
            "|".join(f".*{i}.{{{i % 200}}}" for i in range(n)), "[" + "".join(chr(0x4E00 + i) for i in range(n)) + "]+",
            "".join(f"[^{chr(97 + i % 26)}]*" for i in range(n)), f"\\p{{L}}{{{n}}}\\p{{N}}{{0,{n}}}", "a" * n, "(?:" * n,
        ]  # fmt: skip
    return fixed + made


def schemas() -> list[Any]:
    """Those patterns where schemas have them, and what schemas alone can do."""
    found: list[Any] = [{"type": "string", "pattern": pattern} for pattern in patterns()]
    found += [{"type": "object", "patternProperties": {pattern: {}}} for pattern in patterns()]
    for n in FACTORS:
        found += _sized(n)
    return found + _odd()


def _sized(n: int) -> list[Any]:
    few, names = min(n, 3000), [f"p{i}" for i in range(min(n, 4000))]
    text = {"type": "string"}
    return [
        {"type": "object", "properties": dict.fromkeys(names, text), "required": names},
        {"type": "object", "required": names, "additionalProperties": False},
        {"type": "object", "additionalProperties": text, "minProperties": n, "maxProperties": n},
        {"enum": [f"{i:x}" * 20 for i in range(few)]},
        {"const": "x" * n}, {"const": list(range(few))},
        {"type": "array", "items": text, "minItems": n}, {"type": "array", "items": text, "maxItems": n * 10**6},
        {"type": "array", "prefixItems": [text] * few, "items": False},
        {"type": "array", "items": {"type": "array", "items": text, "minItems": n}, "minItems": n},
        {"type": "string", "minLength": n, "maxLength": n}, {"type": "string", "maxLength": n * 10**6},
        {"type": "integer", "minimum": -(10 ** (n // 100)), "maximum": 10 ** (n // 50)}, {"type": "number", "multipleOf": 1 / n},
        {"anyOf": [{"type": "object", "properties": {f"a{i}": {"const": i}}} for i in range(few)]},
        {"oneOf": [{"type": "string", "pattern": f"^a{{{i}}}b*$"} for i in range(few)]},
        {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {"const": i}}} for i in range(9)]} for j in range(min(n, 40))]},
        {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(few)]},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * few}}, "$ref": "#/$defs/a"},
        {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(few)}, "$ref": "#/$defs/d0"},
        {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(few)}
         | {f"d{few}": text}, "$ref": "#/$defs/d0"},
        {"$defs": {"t": {"type": "object", "properties": {name: {"$ref": "#/$defs/t"} for name in names[:500]}}},
         "$ref": "#/$defs/t"},
        {"dependentSchemas": {name: {"required": [name]} for name in names}},
        {"type": "object", "properties": {"x" * n: text}, "required": ["x" * n]},
        deep(min(n, 400), "items"), deep(min(n, 400), "not"), deep(min(n, 400), "additionalProperties"),
    ]  # fmt: skip


def _odd() -> list[Any]:
    return [
        *({"$ref": "#"}, {"$ref": "#/$defs/none"}, {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}),
        *({"$dynamicRef": "#x"}, {"$id": "http://x/", "$ref": "y"}, {"type": "nothing"}, {"type": [1]}, {"enum": []}),
        *(
            {"enum": "x"},
            {"const": 1e308},
            {"minimum": "1"},
            {"pattern": 7},
            {"properties": []},
            {"items": 3},
            {"not": {}},
        ),
        *(
            {"anyOf": []},
            {"allOf": [{"type": "string"}, {"type": "integer"}]},
            {"format": "regex"},
            {"format": "x" * 999},
        ),
        *(
            {"unevaluatedProperties": False},
            {"if": {}, "then": {}, "else": {}},
            {"uniqueItems": True},
            {"contains": {}},
        ),
        *(
            {"minItems": -1},
            {"maxLength": -1},
            {"minLength": 2, "maxLength": 1},
            {"multipleOf": 0},
            {"multipleOf": 1e-300},
        ),
    ]


def deep(levels: int, keyword: str) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        kind = "array" if keyword == "items" else "object"
        schema = {"type": kind, keyword: schema} if keyword != "not" else {"not": schema}
    return schema


LISTS = "{% set l = range(99999) | list %}"
ROUND = "{{% for a in l %}}{{% for b in l %}}{{% for c in l %}}{body}{{% endfor %}}{{% endfor %}}{{% endfor %}}"


def templates() -> list[str]:
    """A hundred: loops, sizes, recursion, numbers, and ways out of the sandbox."""
    bodies = [
        "",
        "x",
        "{{ a }}",
        "{% set x = a %}",
        "{% if a %}{% endif %}",
        "{{ a * b }}",
        "{{ l | length }}",
        "{{ a ~ b }}",
    ]
    found = [LISTS + ROUND.format(body=body) for body in bodies]
    for n in (10**7, 10**9, 10**12):
        found += [
            f"{{{{ 'x' * {n} }}}}", f"{{{{ [1] * {n} }}}}", f"{{{{ {n} * 'x' }}}}", f"{{{{ 9 ** {n} }}}}",
            f"{{{{ 'x' | center({n}) }}}}", f"{{{{ 'x'.center({n}) }}}}", f"{{{{ 'x'.ljust({n}) }}}}", f"{{{{ 'x'.zfill({n}) }}}}",
            f"{{{{ '\\t'.expandtabs({n}) }}}}", f"{{{{ '%{n}d' % 1 }}}}", f"{{{{ '%*d' % ({n}, 1) }}}}",
            f"{{{{ '%{n}d' | format(1) }}}}", f"{{{{ '{{:{n}d}}'.format(1) }}}}", f"{{{{ 'a\\nb' | indent({n}) }}}}",
            f"{{{{ [1] | tojson(indent={n}) }}}}", f"{{{{ range({n}) | list }}}}", f"{{{{ [1] | batch({n}, 0) | list }}}}",
            f"{{{{ [1] | slice({n}) | list }}}}", f"{{{{ lipsum({n}) }}}}", f"{{{{ '{{0:>{n}}}'.format('x') }}}}",
        ]  # fmt: skip
    found += [
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x ** ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x | replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x | join(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for m in [messages] recursive %}{{ loop(m) }}{{ loop(m) }}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "[" * 90 + "]" * 90 + " }}", "{{ " + "not " * 5000 + "1 }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000, "{% for i in [1] %}" * 90 + "x" + "{% endfor %}" * 90, "{{ 1" + " + 1" * 9000 + " }}",
        "{% if %}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}", "{{ raise_exception.__globals__ }}", "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}", "{{ messages[0].clear() }}", "{{ namespace.__init__ }}", "{{ (messages | attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}", "{{ strftime_now('%Y' * 9999999) }}", "{{ strftime_now('%9999999Y') }}",
        "x" * 20_000_000, "{{ 'x' }}" * 60_000, "{{ messages | map('upper') | join('x' * 9999999) }}",
    ]  # fmt: skip
    return found
