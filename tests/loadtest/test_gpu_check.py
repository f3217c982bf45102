"""The script for GPU machines runs here too, in a tiny form: Triton's interpreter, correctness alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engines.torch.gpu.kv_cache import PagedMemory, StepRows
from engines.torch.gpu.reference import ReferenceAttention
from engines.torch.gpu.step import Attention
from loadtest.gpu import correctness
from loadtest.gpu.models import TINY

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_the_script_passes_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton, which has no build for this machine")
    command = [sys.executable, "-m", "loadtest.gpu_check", "--cpu-interpreter"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    table = ran.stdout.strip().splitlines()
    assert "CPU, Triton's interpreter" in table[0]
    assert [line.split()[-1] for line in table[2:]] == ["ok"] * 3


class Wrong(ReferenceAttention):
    """Attends to one key too few where there are several."""

    def store(self, layer, key, value, rows: StepRows) -> None:  # type: ignore[no-untyped-def]
        late = StepRows(rows.slots, (rows.positions - 1).clamp(min=0), rows.num_decodes, rows.chunk_starts)
        super().store(layer, key, value, late)


def wrong(memory: PagedMemory) -> Attention:
    return Wrong(memory)


def test_the_checks_can_fail() -> None:
    torch.manual_seed(0)
    assert correctness.kernels(TINY, [2], torch.float32, ReferenceAttention).passed
    assert correctness.batches(TINY, 2, 2, None, ReferenceAttention).passed
    assert not correctness.batches(TINY, 2, 2, None, wrong).passed
