"""What the Makefile leaves behind when one of its lines fails."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout that is set up, with a Python of the test's own."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):
        (tmp_path / name).touch()
    return tmp_path


def dry_run(target: str) -> list[str]:
    """The words of what would be run."""
    if shutil.which("make") is None:
        pytest.skip("no make is installed")
    return subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_a_soak_runs_all_that_has_a_full_length() -> None:
    words = dry_run("soak")
    scaled = [path for path in ROOT.glob("tests/**/test_*.py") if "\nfrom tests.scale import" in path.read_text()]
    assert len(scaled) > 10
    assert not [path for path in scaled if str(path.relative_to(ROOT)) not in words]


def make_key(folder: Path, python: str) -> int:
    if shutil.which("make") is None:
        pytest.skip("no make is installed")
    program = folder / ".venv" / "bin" / "python"
    program.write_text(f"#!/bin/sh\n{python}\n")
    program.chmod(0o700)
    return subprocess.run(["make", ".data/dev-key"], cwd=folder, capture_output=True, check=False).returncode


def test_a_development_key_is_made_whole_or_not_at_all(folder: Path) -> None:
    key = folder / ".data" / "dev-key"
    assert make_key(folder, "printf sk-pen-; exit 1") != 0
    assert not key.exists()
    assert make_key(folder, "echo sk-pen-whole") == 0
    assert key.read_text() == "sk-pen-whole\n"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_servers_that_are_missing_are_named(folder: Path) -> None:
    """Who is not root is told what to install; nothing is installed, and nothing fails."""
    programs = folder / "bin"
    programs.mkdir()
    for name, script in {"id": "echo 1000", "nginx": "", "apt-get": "touch installed"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o700)
    make, shell = shutil.which("make"), shutil.which("sh")
    if make is None or shell is None:
        pytest.skip("no make is installed")
    (programs / "sh").symlink_to(shell)
    command = [make, f"SHELL={shell}", "test-servers", "SBIN="]
    done = subprocess.run(command, cwd=folder, env={"PATH": str(programs)}, capture_output=True, text=True, check=True)
    assert "apt-get install" in done.stdout
    assert "redis-server" in done.stdout
    assert "nginx" not in done.stdout
    assert not (folder / "installed").exists()
