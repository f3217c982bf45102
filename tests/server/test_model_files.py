"""Whether a model's files are the same ones as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.model_files import digest

LONG = 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(LONG))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    return tmp_path


def test_the_same_files_elsewhere_have_the_same_digest(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.rglob("*.*"):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert digest(copy) == digest(folder)
    (copy / "README.md").write_text("about it")
    assert digest(copy) == digest(folder), "nothing that a model reads"


@pytest.mark.parametrize("position", [0, LONG - 1])
def test_other_weights_are_noticed(folder: Path, position: int) -> None:
    before = digest(folder)
    data = bytearray(LONG)
    data[position] = 1
    (folder / "model.safetensors").write_bytes(data)
    assert digest(folder) != before


def test_other_weights_between_the_first_and_the_last_are_noticed(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(10 * LONG))
    before = digest(folder)
    with weights.open("r+b") as file:
        file.seek(4 * LONG)
        file.write(b"1" * LONG)
    assert digest(folder) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "onnx/model.onnx", "model-2.safetensors"])
def test_another_file_is_noticed(folder: Path, name: str) -> None:
    before = digest(folder)
    (folder / name).write_text("another")
    assert digest(folder) != before
