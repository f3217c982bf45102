"""What `penstock triton-repo` writes, and what its parameters mean when they are read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from batching.triton_parameters import ModelParameters, read_parameters
from batching.triton_repository import RepositoryError, TritonRepository
from engines.base import EngineError


def repository(folder: Path, name: str = "m", weights: Path | None = None, **parameters: str) -> TritonRepository:
    values = {"engine": "fake"} | parameters
    return TritonRepository(folder, name, 3, ModelParameters(**values), weights)


def test_a_model_s_folder(tmp_path: Path) -> None:
    written = repository(tmp_path / "new" / "repository").write()
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "3/model.py"}
    config = (written / "config.pbtxt").read_text()
    for line in ('name: "m"', "decoupled: true", "versions: [ 3 ]", 'key: "engine" value: { string_value: "fake" }'):
        assert line in config
    assert [path.name for path in written.parent.iterdir()] == ["m"], "nothing unfinished is left"


def test_weights_come_along_without_what_is_no_use(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "onnx/model.onnx", "pytorch_model.bin", "README.md", ".gitignore"):
        (weights / name).write_text(name)
    copied = repository(tmp_path / "r", weights=weights, path="model").write() / "3" / "model"
    found = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "onnx/model.onnx"}


def test_a_repository_holds_several_models(tmp_path: Path) -> None:
    for name in ("a", "b"):
        repository(tmp_path, name).write()
    with pytest.raises(RepositoryError, match="has a model a already"):
        repository(tmp_path, "a").write()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_bad_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="--name: expected letters"):
        repository(tmp_path, name).write()


def test_what_is_no_repository_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RepositoryError, match=r"not empty, and no model repository: thesis.txt is no model"):
        repository(tmp_path).write()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RepositoryError, match="expected a folder"):
        repository(tmp_path / "thesis.txt").write()


def test_parameters_survive_the_file() -> None:
    wanted = ModelParameters("torch", "model", "float32", "int8", 512, 7, 9, '{"threads": 2}')
    read = read_parameters(wanted.strings() | {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}, Path("/r/m/1"), "m")
    engine = read.engine
    assert (engine.kind, engine.path, engine.dtype, engine.quantize) == ("torch", "/r/m/1/model", "float32", "int8")
    assert (engine.max_model_len, engine.max_num_seqs, read.max_queue, engine.options) == (512, 7, 9, {"threads": 2})


def test_an_absolute_path_is_where_it_says() -> None:
    assert read_parameters({"engine": "torch", "path": "/weights"}, Path("/r/m/1"), "m").engine.path == "/weights"


@pytest.mark.parametrize(
    ("strings", "words"),
    [
        ({"max_num_seq": "4"}, "parameters.max_num_seq: unknown; expected one of engine, path"),
        ({"max_num_seqs": "four"}, "parameters: Expected `int`.*max_num_seqs"),
        ({"max_num_seqs": "0"}, "max_num_seqs >= 1"),
        ({"engine": "triton"}, "parameters.engine: expected one of torch, onnx, fake, got 'triton'"),
        ({"options": "[1]"}, "options: expected a JSON object"),
        ({"options": "{"}, "options: expected a JSON object"),
    ],
)
def test_parameters_that_make_no_sense(strings: dict[str, str], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        read_parameters(strings, Path("/r/m/1"), "m")
