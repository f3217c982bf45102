"""The floor under a model's times, by hand, and the facts that it is made of."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loadtest import machine
from loadtest.records import BenchError, RequestRecord
from loadtest.roofline import Roofline
from tests.loadtest.reports import FACTS, records

FILE = "parameters = 1\nweight_bytes = 4\nkv_bytes_per_token = 8\nbytes_per_s = 16\nflop_per_s = 32\n"


def test_a_step_is_bound_by_memory_or_by_arithmetic() -> None:
    assert FACTS.step_s(1, 0) == pytest.approx(4e-3)  # the weights
    assert FACTS.step_s(10, 100) == pytest.approx(5e-3)  # and 1,000 tokens of KV
    assert FACTS.step_s(1000, 0) == pytest.approx(2e-2)  # 2e9 operations


def test_the_ceiling_of_requests() -> None:
    """8 tokens of prompt take 0.16 ms, 5 steps of 4.0105 ms at a mean context of 10.5 the rest."""
    assert FACTS.tokens_per_s(records(0.01)) == pytest.approx(5 / (0.00016 + 5 * 0.0040105))


def test_without_counts_there_is_none() -> None:
    (known,) = records(0.01)
    uncounted = RequestRecord(known.planned, known.start_s, known.end_s, known.content_times_s)
    assert FACTS.tokens_per_s([uncounted]) is None
    assert FACTS.tokens_per_s([]) is None


def test_a_file_of_facts(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(FILE)
    assert Roofline.read(path) == Roofline(1, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILE + "x = 1\n", "x: unknown"),
        (FILE.replace("parameters = 1", ""), "parameters: expected a number"),
        (FILE.replace("parameters = 1", "parameters = 0"), "above 0, got 0"),
        (FILE.replace("parameters = 1", "parameters = true"), "got True"),
        ("=", "cannot read"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=words):
        Roofline.read(path)


CONFIG = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}


def write_model(folder: Path, **shapes: list[int]) -> Path:
    tensors = {name.replace("__", "."): {"dtype": "BF16", "shape": shape} for name, shape in shapes.items()}
    header = json.dumps({"__metadata__": {}, **tensors}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COPY_BYTES": 8000, "GEMM_SIZE": 8, "TRIES": 1}.items():
        monkeypatch.setattr(machine, name, value)


@pytest.mark.usefixtures("quick")
def test_a_model_s_facts(tmp_path: Path) -> None:
    folder = write_model(tmp_path, model__embed_tokens__weight=[10, 4], layers__0__weight=[4, 4])
    facts = machine.measure(folder, weight_bytes=2, kv_bytes=4)
    assert (facts.parameters, facts.weight_bytes) == (56, 112)  # the embeddings are the head
    assert facts.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
    assert facts.bytes_per_s > 0
    assert facts.flop_per_s > 0


@pytest.mark.usefixtures("quick")
def test_what_the_command_writes_is_read_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path, model__embed_tokens__weight=[10, 4], lm_head__weight=[10, 4], a__weight=[4, 4])
    app = typer.Typer()
    app.command()(machine.main)
    written = CliRunner().invoke(app, [str(folder)])
    assert written.exit_code == 0, written.output
    path = tmp_path / "r.toml"
    path.write_text(written.stdout)
    assert Roofline.read(path).parameters == 56  # embeddings beside a head are looked up


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"config\.json"):
        machine.measure(tmp_path, 4, 4)
