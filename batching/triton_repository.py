"""Writes a model repository that a tritonserver loads as it is: a worker of ours as a model of Triton's."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from batching.triton_parameters import ModelParameters
from engines.hosting import HOSTED_TENSORS

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
WEIGHTS_FOLDER = "model"  # in the version's folder
UNUSED = (".*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.md", "original", "runs")
MODEL_PY = '''"""Penstock's scheduler and engine as a model of Triton. Needs the package penstock in Triton's Python."""

from batching.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class RepositoryError(Exception):
    """It can't be written. The message is one line."""


@dataclass(frozen=True, slots=True)
class TritonRepository:
    """One model in the repository `folder`. `weights`: what is copied into it, for `parameters.path` to name; None
    where that is an absolute path, or none at all."""

    folder: Path
    name: str
    version: int
    parameters: ModelParameters
    weights: Path | None = None

    def write(self) -> Path:
        """All or nothing; returns the model's folder. What is there stays as it is. Raises RepositoryError."""
        self._check()
        unfinished = self.folder / f".{self.name}.unfinished"  # Triton takes no notice of it
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            self._write_into(unfinished)
            return unfinished.rename(self.folder / self.name)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RepositoryError(f"{self.folder}: {error.strerror or error}") from error

    def _check(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise RepositoryError(f"--name: expected letters, digits, dots, hyphens and underscores, got {self.name!r}")
        if self.folder.exists() and not self.folder.is_dir():
            raise RepositoryError(f"{self.folder}: expected a folder, or none yet")
        for path in sorted(self.folder.iterdir()) if self.folder.exists() else ():
            if path.name == self.name:
                raise RepositoryError(f"{self.folder}: it has a model {self.name} already: choose another --name")
            if not (path / "config.pbtxt").is_file() and not path.name.endswith(".unfinished"):
                raise RepositoryError(f"{self.folder}: not empty, and no model repository: {path.name} is no model")

    def _write_into(self, folder: Path) -> None:
        version = folder / str(self.version)
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL_PY, encoding="utf-8")
        (folder / "config.pbtxt").write_text(self.config(), encoding="utf-8")
        if self.weights is not None:
            shutil.copytree(self.weights, version / WEIGHTS_FOLDER, ignore=shutil.ignore_patterns(*UNUSED))

    def config(self) -> str:
        """As config.pbtxt: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto

        One instance: it batches by itself, and a session lives in it. KIND_MODEL: the engine finds its device.
        """
        inputs = [_tensor("input", name, kind, optional=name == "frames") for name, kind in HOSTED_TENSORS.items()]
        outputs = [_tensor("output", name, "UINT8") for name in ("frames", "welcome")]
        parameters = [
            f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(text)} }} }}"
            for key, text in self.parameters.strings().items()
        ]
        head = [
            f"name: {_quoted(self.name)}",
            'backend: "python"',
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            f"version_policy {{ specific {{ versions: [ {self.version} ] }} }}",
            "instance_group [ { count: 1 kind: KIND_MODEL } ]",
        ]
        return "\n".join([*head, *inputs, *outputs, *parameters]) + "\n"


def _tensor(side: str, name: str, kind: str, *, optional: bool = False) -> str:
    dims = "1" if name in ("action", "session") else "-1"
    return f'{side} [ {{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ]{" optional: true" * optional} }} ]'


def _quoted(text: str) -> str:
    """As protobuf's text format has strings, which is as JSON has them."""
    return json.dumps(text, ensure_ascii=False)
