"""The README's table of engines says what the code declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import EngineError
from engines.registry import FACTORIES
from engines.types import SamplingParams

pytest.importorskip("tritonclient", reason="penstock[triton] is not installed")

from engines.triton.conventions import CONVENTIONS, Convention, TensorParameters
from engines.triton.model import TritonModel
from engines.triton.tensors import TensorSpec

README = Path(__file__).resolve().parent.parent / "README.md"
CONVENTION_COLUMNS = {
    "VLLM": "vLLM",
    "TensorRTText": "TensorRT-LLM text",
    "TensorRTTokens": "TensorRT-LLM tokens",
    "TensorRTLLMAPI": "LLM API",
}
NOT_IN_IT = {"max_tokens", "grammar", "prompt_logprobs"}  # the last is `echo` with `logprobs`
PARAMETERS = set(SamplingParams.__dataclass_fields__) - NOT_IN_IT
GRAMMARS = "holds answers to a schema, forces tool calls"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table() -> dict[str, dict[str, str]]:
    """Row, then column: of the table that has a column for each engine."""
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| | `torch`"))
    columns = [name.strip("`") for name in cells(lines[start])[1:]]
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *values = cells(line)
        assert len(values) == len(columns), line
        rows[name.strip("`")] = dict(zip(columns, values, strict=True))
    return rows


def carried(convention: type[Convention]) -> frozenset[str]:
    """By a model that has every tensor of this convention, each of the first type that fits."""
    names = dict(convention.required)
    if issubclass(convention, TensorParameters):
        unknown = [name for names_ in convention.parameters.values() for name in names_ if name not in names]
    else:
        unknown = []
    inputs = {name: TensorSpec(name, kind.value[0], (1,)) for name, kind in names.items()}
    outputs = {name: TensorSpec(name, kind.value[0], (1,)) for name, kind in convention.answers.items()}
    for name in unknown:
        inputs[name] = TensorSpec(name, _type_of(convention, inputs, outputs, name), (1,))
    return convention(TritonModel("m", inputs, outputs, True, 0, 1, {})).sampling


def _type_of(
    convention: type[Convention], inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], name: str
) -> str:
    for datatype in ("INT32", "FP32"):
        try:
            tensors = inputs | {name: TensorSpec(name, datatype, (1,))}
            convention(TritonModel("m", tensors, outputs, True, 0, 1, {}))
        except EngineError:
            continue
        return datatype
    raise AssertionError(f"no type fits {name}")


def test_every_engine_and_every_parameter_is_in_it() -> None:
    rows = table()
    assert set(rows) >= PARAMETERS
    columns = set(rows["seed"])
    assert columns == (set(FACTORIES) - {"triton"}) | set(CONVENTION_COLUMNS.values())
    assert {convention.__name__ for convention in CONVENTIONS} == set(CONVENTION_COLUMNS), "a column is missing"


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.__name__)
def test_what_a_convention_carries(convention: type[Convention]) -> None:
    column = CONVENTION_COLUMNS[convention.__name__]
    said = {parameter for parameter in PARAMETERS if table()[parameter][column] == "yes"}
    assert said == carried(convention) & PARAMETERS
    assert {table()[parameter][column] for parameter in PARAMETERS - said} <= {"–"}


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_our_own_engines_carry_out_all(kind: str) -> None:
    """Their EngineInfo names no fields, which means all: tests/engines/test_contract.py runs them."""
    assert {table()[parameter][kind] for parameter in PARAMETERS | {GRAMMARS}} == {"yes"}
