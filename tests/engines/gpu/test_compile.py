from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_the_kernels_compile_for_an_h200(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton, which has no build for this machine")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.engines.gpu.compile_kernels"],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(ran.stdout.split()) == 6
