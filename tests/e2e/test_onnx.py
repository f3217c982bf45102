"""The bundled model on ONNX Runtime: exported and served by the commands that the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import BUNDLED_FOLDER
from tests.penstock_process import ROOT, UNLIMITED, PenstockProcess

QUESTIONS = ["What is Penstock?", "How do I create a key?", "What is a quota?"]


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


def ask(server: PenstockProcess, model: str) -> list[str]:
    with server.sdk() as client:
        answers = [
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48
            )
            for question in QUESTIONS
        ]
    return [answer.choices[0].message.content or "" for answer in answers]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "tiny-onnx"
    done = penstock("export-onnx", str(BUNDLED_FOLDER), str(folder), "--quantize", "int8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == f"{folder} is ready: penstock serve --engine onnx {folder}".split()
    return folder


def test_it_answers_as_the_torch_engine_does(
    exported: Path, bundled: PenstockProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments = ("--engine", "onnx", str(exported))
    with PenstockProcess(tmp_path_factory.mktemp("onnx"), UNLIMITED, *arguments) as server:
        assert ask(server, "tiny-onnx") == ask(bundled, "tiny-chat")


def test_int8_answers(exported: Path, bundled: PenstockProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Short answers that the model has learned by heart: at least one of three survives the rounding."""
    arguments = ("--engine", "onnx", "--quantize", "int8", str(exported))
    with PenstockProcess(tmp_path_factory.mktemp("int8"), UNLIMITED, *arguments) as server:
        pairs = zip(ask(server, "tiny-onnx"), ask(bundled, "tiny-chat"), strict=True)
    assert any(rounded == exact for rounded, exact in pairs)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("serve", "--engine", "onnx", "--port", "0"), "no model.onnx: export the model first: penstock export-onnx"),
        (("export-onnx", "no/such folder", "anywhere"), "expected a folder with a model, or a Hugging Face id"),
        (("export-onnx", "tests", "anywhere"), "tests: can't be loaded: "),
    ],
)
def test_mistakes_end_in_one_line(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    if arguments[0] == "serve":
        arguments = (*arguments, "--data-dir", str(tmp_path))
    done = penstock(*arguments)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # what is no log
    assert line.startswith("penstock: ")
    assert reason in line
