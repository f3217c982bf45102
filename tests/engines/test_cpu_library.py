"""The compiled kernels: built once, by level, and done without where they can't be."""

import ctypes
import logging
import os
from pathlib import Path

import pytest

from engines.torch.cpu import library

FITTING = [level for level in library.LEVELS if level.needs <= library.cpu_flags()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_KERNEL_DIR", str(tmp_path / "kernels"))
    library.library.cache_clear()
    yield tmp_path / "kernels"
    library.library.cache_clear()


@pytest.mark.parametrize("level", FITTING, ids=lambda level: level.name)
def test_every_level_of_this_cpu_builds_once_and_loads(level: library.Level, folder: Path) -> None:
    try:
        built = library.build(level)
    except OSError as error:
        pytest.skip(str(error))
    made = built.stat().st_mtime_ns
    assert ctypes.CDLL(str(built)).penstock_init()
    assert library.build(level) == built
    assert built.stat().st_mtime_ns == made
    assert os.stat(folder).st_mode & 0o077 == 0


def test_the_best_level_that_fits_comes_first_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.levels() == FITTING
    monkeypatch.setenv("PENSTOCK_CPU_LEVEL", "plain")
    assert [level.name for level in library.levels()] == ["plain"]


class Refused:
    """A library whose CPU the system does not let it use."""

    def __init__(self, path: str) -> None:
        self.path = path

    def penstock_init(self) -> bool:
        return "plain" in self.path


def test_what_the_system_refuses_gives_way_to_the_next_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "build", lambda level: level.name)
    monkeypatch.setattr(library.ctypes, "CDLL", Refused)
    assert library._loaded(FITTING).path == "plain"
    with pytest.raises(OSError, match="does not let us use"):
        library._loaded(FITTING[:-1])


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("PENSTOCK_CPU_LEVEL", "z80", "expected one of"), ("PATH", "/nowhere", "no C++ compiler")],
)
def test_without_a_library_the_log_says_why(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
    reason: str,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.WARNING):
        assert library.library() is None
    assert reason in caplog.text


def test_a_source_that_does_not_compile_is_no_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.cpp").write_text("this is no program")
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert library.library() is None
    assert "no CPU kernels" in caplog.text
    assert not list(folder.glob("*.so"))


def test_it_can_be_declined(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PENSTOCK_CPU_LEVEL", "none")
    assert library.library() is None
    assert not caplog.text
