"""Servers as their users start them: the bundled model, several real ones, and the deterministic engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.settings import BUNDLED_FOLDER
from tests.court import every_answer_is_right, judged
from tests.penstock_process import ROOT, UNLIMITED, PenstockProcess

__all__ = ["every_answer_is_right"]

SHARED = ROOT.parent / "shared" / "data"
SHARED_MODELS = ("stories260K", "tinyllm-chat", "tiny-llama")
KEYS_OF_A_MODEL = 'engine = "torch"\ndtype = "float32"\nmax_num_seqs = 16\n'


def shared_folder(name: str) -> Path:
    """Skips the test, with its reason, where the folder is not there."""
    folder = SHARED / "models" / name
    if not folder.is_dir():
        pytest.skip(f"the optional folder of shared models has no {name} here")
    return folder


def declare(name: str, version: str, folder: Path, extra: str = "") -> str:
    return f'[[models]]\nname = "{name}"\nversion = "{version}"\npath = "{folder}"\n{KEYS_OF_A_MODEL}{extra}\n'


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    """No model is declared."""
    with judged(PenstockProcess(tmp_path_factory.mktemp("bundled"), UNLIMITED, judged=True)) as running:
        yield running


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    """Two versions of the bundled model, and the shared models that are there."""
    config = declare("tiny-chat", "1", BUNDLED_FOLDER, "max_model_len = 1024")
    config += declare("tiny-chat", "2", BUNDLED_FOLDER, "max_model_len = 200")
    for name in SHARED_MODELS:
        if (folder := SHARED / "models" / name).is_dir():
            config += declare(name, "1", folder)
    routing = '[routing]\naliases = { chat = "tiny-chat@1" }\ndefault_versions = { tiny-chat = "1" }\n'
    server = PenstockProcess(tmp_path_factory.mktemp("several"), config + routing + UNLIMITED, judged=True)
    with judged(server) as running:
        yield running


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with judged(PenstockProcess(tmp_path_factory.mktemp("fake"), judged=True)) as running:
        yield running
