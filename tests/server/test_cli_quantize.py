"""`penstock quantize`: what it writes, and what it says where it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.cli import app
from server.settings_models import BUNDLED_FOLDER


def quantize(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def test_sizes_and_the_next_command_are_told(tmp_path: Path) -> None:
    ended = quantize(BUNDLED_FOLDER, tmp_path / "a" / "int8")
    target = tmp_path / "a" / "int8"
    assert ended.stdout.split() == (
        f"{target} is ready, 4.8 MB of weights from 9.5 MB (25.5% of float32): penstock serve {target}".split()
    )
    assert (target / "tokenizer.json").read_bytes() == (BUNDLED_FOLDER / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/model", "/no/such/model: expected a folder with a model"),
        ("deploy", "deploy: no config.json"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, source: str, words: str) -> None:
    ended = quantize(source, tmp_path / "int8")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"penstock: {words}")
    assert (ended.exit_code, list(tmp_path.iterdir())) == (2, [])
