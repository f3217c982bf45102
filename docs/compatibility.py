"""Writes docs/compatibility.md from the code: `make docs`.

`server.compatibility` knows the endpoints and their fields; here the parameters of the SDKs are put beside them.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import anthropic.types
import openai.types.chat
import openai.types.responses.input_item_list_params

from server.access import ANY_KEY_PATHS
from server.app import ROUTERS
from server.compatibility import Endpoint, Field, Status, endpoints
from server.store.records import KeyKind

PAGE = Path(__file__).with_suffix(".md")
KEYS = {None: "open", KeyKind.API: "an API key", KeyKind.ADMIN: "an admin key"}
# The SDKs' parameters, by endpoint; a name in a path is `{}`.
PARAMETERS: dict[str, Any] = {
    "POST /v1/chat/completions": openai.types.chat.CompletionCreateParams,
    "POST /v1/completions": openai.types.CompletionCreateParams,
    "POST /v1/embeddings": openai.types.EmbeddingCreateParams,
    "POST /v1/moderations": openai.types.ModerationCreateParams,
    "POST /v1/files": openai.types.FileCreateParams,
    "GET /v1/files": openai.types.FileListParams,
    "POST /v1/batches": openai.types.BatchCreateParams,
    "GET /v1/batches": openai.types.BatchListParams,
    "POST /v1/responses": openai.types.responses.ResponseCreateParams,
    "GET /v1/responses/{}": openai.types.responses.ResponseRetrieveParams,
    "GET /v1/responses/{}/input_items": openai.types.responses.input_item_list_params.InputItemListParams,
    "POST /v1/responses/input_tokens": openai.types.responses.InputTokenCountParams,
    "POST /v1/responses/compact": openai.types.responses.ResponseCompactParams,
    "POST /v1/messages": anthropic.types.MessageCreateParams,
    "POST /v1/messages/count_tokens": anthropic.types.MessageCountTokensParams,
    "GET /v1/models": anthropic.types.ModelListParams,
}
OPENING = """\
# What becomes of every field

Made from the code by `make docs`: not to be edited. Every endpoint, the key that opens it, and what becomes of each
field of its request; of fields within fields, those are named of which more is to be said, and what each `type` may
be. `[]` stands for the items of a list, `{}` for a name in a path.

- **Honoured**: it does what its API's reference says. Where a condition stands beside it and does not hold, it is
  refused by name.
- **Accepted, no effect**: it can't change the answer, and nothing is done with it.
- **Refused**: a 400 that names it (`unsupported_parameter`, or `invalid_value` with what was expected). The values in
  brackets, and null, ask for what is done anyway and are accepted. Whatever has no entry here is refused too; of the
  parameters that OpenAI's and Anthropic's SDKs have, all are listed.
"""


def page() -> str:
    """Raises server.compatibility.Undeclared."""
    found = endpoints(route for router in ROUTERS for route in router.routes)
    sections = [_section(endpoint) for endpoint in found if endpoint.fields or _unknown(endpoint)]
    return "\n".join([OPENING, *_overview(found), *sections])


def _overview(found: Iterable[Endpoint]) -> Iterator[str]:
    yield "| endpoint | opened by |"
    yield "|---|---|"
    for endpoint in found:
        opened_by = "any key" if ANY_KEY_PATHS.issuperset(endpoint.paths) else KEYS[endpoint.key]
        yield f"| {_title(endpoint)} | {opened_by} |"
    yield ""


def _title(endpoint: Endpoint) -> str:
    methods = ", ".join(endpoint.methods)
    return f"{methods} " + ", ".join(f"`{_bare(path)}`" for path in endpoint.paths)


def _bare(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def _section(endpoint: Endpoint) -> str:
    groups: dict[str, list[str]] = {}
    for field in endpoint.fields:
        groups.setdefault(_group(field), []).append(_entry(field))
    for name in _unknown(endpoint):
        groups.setdefault("Refused", []).append(f"`{name}`")
    lines = [f"## {_title(endpoint)}\n"]
    for group in sorted(groups, key=_rank):
        text = f"- **{group}**: {', '.join(groups[group])}"
        lines.append(textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines) + "\n"


def _group(field: Field) -> str:
    if field.status is Status.HONOURED and field.where:
        return f"Honoured where {field.where}"
    return field.status.capitalize()


def _entry(field: Field) -> str:
    values = " or ".join(f"`{json.dumps(value)}`" for value in field.neutral or field.kinds)
    return f"`{field.path}`" + (f" ({values})" if values else "")


def _rank(group: str) -> int:
    order = ["Honoured", "Honoured where", Status.NO_EFFECT.capitalize(), Status.REFUSED.capitalize()]
    return order.index("Honoured where" if group.startswith("Honoured where") else group)


def _unknown(endpoint: Endpoint) -> list[str]:
    """The SDK's parameters that our model does not have."""
    names = {f"{method} {_bare(path)}" for method in endpoint.methods for path in endpoint.paths}
    theirs = {parameter for name in names for parameter in _names(PARAMETERS.get(name))}
    return sorted(theirs - {field.path for field in endpoint.fields})


def _names(parameters: Any) -> set[str]:
    """Of a TypedDict, or of a union of them."""
    if parameters is None:
        return set()
    return {name for kind in get_args(parameters) or (parameters,) for name in _keys(kind)}


def _keys(kind: Any) -> frozenset[str]:
    required: frozenset[str] = kind.__required_keys__
    optional: frozenset[str] = kind.__optional_keys__
    return required | optional


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
