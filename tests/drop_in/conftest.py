"""A server that does what clients of all kinds ask for, and their environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.settings import BUNDLED_FOLDER
from tests.court import every_answer_is_right, judged
from tests.penstock_process import ROOT, UNLIMITED, PenstockProcess

__all__ = ["every_answer_is_right"]

CLIENTS = ROOT / ".clients"
MODEL = "caller"
# The bundled model has learned no tools. With a template that shows them, what it is held to is a call all the same.
TEMPLATE = """
{%- if tools -%}
{{- '<|im_start|>system\\nCall a function as <tool_call>{"name": ..., "arguments": ...}</tool_call>: ' -}}
{{- tools | tojson + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') -}}
{{- (message['tool_calls'] | tojson) if message['tool_calls'] else '' -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
VECTORS = '[[models]]\nname = "vectors"\nengine = "fake"\ntask = "embed"\n'


@pytest.fixture(scope="session")
def clients() -> Path:
    if not (CLIENTS / ".installed").exists():
        pytest.skip("the real clients are not installed: run `make test-clients`")
    return CLIENTS


@pytest.fixture(scope="session")
def server(clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    folder = tmp_path_factory.mktemp("drop-in")
    model = folder / MODEL
    shutil.copytree(BUNDLED_FOLDER, model)
    (model / "chat_template.jinja").write_text(TEMPLATE.strip(), encoding="utf-8")
    config = f'[[models]]\nname = "{MODEL}"\npath = "{model}"\ndtype = "float32"\n'
    with judged(PenstockProcess(folder, config + VECTORS + UNLIMITED, judged=True)) as running:
        yield running
