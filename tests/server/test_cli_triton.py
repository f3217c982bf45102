"""`penstock triton-repo`: what it writes, and what it says where it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.cli import app
from server.settings_models import BUNDLED_FOLDER


def triton_repo(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["triton-repo", *map(str, arguments)])


def test_a_model_with_its_weights(tmp_path: Path) -> None:
    written = triton_repo(BUNDLED_FOLDER, tmp_path / "r", "--dtype", "float32", "--max-num-seqs", 8)
    assert written.exit_code == 0
    assert f"tritonserver --model-repository {tmp_path / 'r'}" in written.output
    model = tmp_path / "r" / "tiny-chat"
    assert (model / "1" / "model" / "model.safetensors").read_bytes()
    assert 'key: "max_num_seqs" value: { string_value: "8" }' in (model / "config.pbtxt").read_text()


def test_a_model_whose_weights_stay_where_they_are(tmp_path: Path) -> None:
    assert triton_repo(BUNDLED_FOLDER, tmp_path, "--name", "linked", "--version", 4, "--link").exit_code == 0
    assert [path.name for path in (tmp_path / "linked" / "4").iterdir()] == ["model.py"]
    assert f'string_value: "{BUNDLED_FOLDER}"' in (tmp_path / "linked" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/model", "DIR"], "/no/such/model: expected a folder with a model"),
        (["deploy", "DIR"], "deploy: --engine torch needs a folder with *.safetensors files"),
        (
            [str(BUNDLED_FOLDER), "DIR", "--engine", "onnx"],
            f"{BUNDLED_FOLDER}: --engine onnx needs a folder with *.onnx",
        ),
        (["fake", "DIR", "--engine", "fake", "--name", "a b"], "--name: expected letters, digits"),
        (["fake", "tests", "--engine", "fake"], "tests: not empty, and no model repository"),
        (["fake", "DIR", "--engine", "fake", "--options", "{"], "options: expected a JSON object"),
    ],
)
def test_what_can_t_be_written_is_told_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    ended = triton_repo(*(argument.replace("DIR", str(tmp_path)) for argument in arguments))
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"penstock: {words}")
    assert (ended.exit_code, list(tmp_path.iterdir())) == (2, [])


@pytest.mark.parametrize("link", [(), ("--link",)])
def test_a_model_that_makes_vectors_is_refused_before_it_is_copied(tmp_path: Path, link: tuple[str, ...]) -> None:
    model = tmp_path / "minilm"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["BertModel"]}')
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).touch()
    ended = triton_repo(model, tmp_path / "r", *link)
    assert ended.stderr == (
        f"penstock: {model}: this model embeds texts; inside a Triton expected one that generates: "
        "serve it without a Triton\n"
    )
    assert (ended.exit_code, list(tmp_path.iterdir())) == (2, [model])
