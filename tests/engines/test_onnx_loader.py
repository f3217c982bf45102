"""Graphs are known by their inputs and outputs; what can't be served is refused in one line that says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from engines.base import EngineError
from engines.onnx.engine import OnnxEngine
from engines.onnx.probe import Abilities
from engines.types import EngineConfig
from tests.engines.conftest import BUNDLED
from tests.engines.test_onnx_greedy import crowds

FLOAT, FLOAT16, INT64, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.DOUBLE
IDS, CACHE = ["batch", "tokens"], ["batch", 2, "past", 4]
PAST = [f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]


def refusal(folder: Path, **config: Any) -> str:
    with pytest.raises(EngineError) as caught:
        OnnxEngine(EngineConfig("onnx", str(folder), **config))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(optimum: Path, tmp_path: Path) -> Path:
    """A copy of optimum's Llama that a test may change."""
    return Path(shutil.copytree(optimum / "llama", tmp_path / "model"))


# --- no model, or another one


def test_missing_folder(tmp_path: Path) -> None:
    assert "no folder" in refusal(tmp_path / "nowhere")


def test_a_folder_without_a_graph() -> None:
    assert f"no model.onnx: export the model first: penstock export-onnx {BUNDLED} DIR" in refusal(BUNDLED)


def test_a_file_that_is_no_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\xff" * 1000)
    assert "model.onnx: can't be loaded" in refusal(folder)


def test_a_truncated_graph(folder: Path) -> None:
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(graph[: len(graph) // 2])
    assert "model.onnx: can't be loaded" in refusal(folder)


def test_broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json: not valid JSON" in refusal(folder)


def test_an_encoder(optimum: Path) -> None:
    message = refusal(optimum / "bert")
    assert "computes embeddings (last_hidden_state), no text: export it as text-generation-with-past" in message


# --- a graph with other inputs and outputs. They are enough to refuse it: these compute nothing.

DECODER_IN = {
    "input_ids": (INT64, IDS),
    "past_key_values.0.key": (FLOAT, CACHE),
    "past_key_values.0.value": (FLOAT, CACHE),
}
DECODER_OUT = {"logits": (FLOAT, [*IDS, 9]), "present.0.key": (FLOAT, CACHE), "present.0.value": (FLOAT, CACHE)}


def write_graph(folder: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    nodes = []
    for name, (kind, shape) in outputs.items():
        value = helper.make_tensor("value", kind, [1] * len(shape), [0])
        nodes.append(helper.make_node("Constant", [], [name], value=value))
    ends = [[helper.make_tensor_value_info(n, *of) for n, of in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({"input_ids": None}, {}, "no input input_ids"),
        (
            {"past_key_values.0.key": None, "past_key_values.0.value": None},
            {},
            "the model has no KV cache: export it as",
        ),
        ({}, {"logits": None}, "no output logits: export it as"),
        ({}, {"present.0.value": None}, "no output present.0.value: export it as"),
        ({"encoder_hidden_states": (FLOAT, IDS)}, {}, "the input encoder_hidden_states is none of a decoder's"),
        ({"past_key_values.0.key": (FLOAT, IDS)}, {}, "past_key_values.0.key has 2 dimensions, expected batch, heads"),
        ({"past_key_values.0.key": (FLOAT, ["b", "h", "p", "d"])}, {}, "nor config.json says its heads and their size"),
        (
            {"past_key_values.0.key": (FLOAT16, CACHE)},
            {},
            "present.0.key is a tensor(float), but past_key_values.0.key a",
        ),
        (
            {name: (DOUBLE, CACHE) for name in DECODER_IN if "past" in name},
            {name: (DOUBLE, CACHE) for name in DECODER_OUT if "present" in name},
            "is a tensor(double), expected one of float, float16",
        ),
        ({}, {"logits": (INT64, [*IDS, 9])}, "logits is a tensor(int64), expected tensor(float)"),
    ],
)
def test_signatures(inputs: dict[str, Any], outputs: dict[str, Any], reason: str, tmp_path: Path) -> None:
    ends = [
        {n: of for n, of in (base | change).items() if of}
        for base, change in ((DECODER_IN, inputs), (DECODER_OUT, outputs))
    ]
    write_graph(tmp_path, *ends)
    message = refusal(tmp_path)
    assert reason in message
    assert "model.onnx: " in message


def test_logits_of_one_position_only(tmp_path: Path) -> None:
    write_graph(tmp_path, DECODER_IN, DECODER_OUT | {"logits": (FLOAT, ["batch", 1, 9])})
    assert "expected one row a token" in refusal(tmp_path)


# --- the configuration


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"dtype": "bfloat16"}, 'dtype: the graph computes in float32, set that or "auto", got "bfloat16"'),
        ({"quantize": "int4"}, "quantize: expected one of none, int8"),
        ({"options": {"colour": 3}}, "options.colour: unknown; the onnx engine knows threads"),
        ({"options": {"threads": "two"}}, "options.threads: expected a positive integer"),
        ({"options": {"num_blocks": 2}, "max_model_len": 60}, "kv_memory_bytes to at least"),
        ({"max_model_len": 65}, "max_model_len: 65 exceeds the model's 64 positions"),
    ],
)
def test_configuration_errors(config: Any, reason: str, optimum: Path) -> None:
    assert reason in refusal(optimum / "llama", **config)


def test_a_graph_without_config_json_needs_a_length(folder: Path, make_onnx_engine: Any) -> None:
    (folder / "config.json").unlink()
    assert "max_model_len: the checkpoint states no limit, so it must be set" in refusal(folder)
    assert make_onnx_engine(folder, max_model_len=50).info.vocab_size == 32


def test_a_quantized_graph_of_the_folder_is_taken(folder: Path, make_onnx_engine: Any) -> None:
    shutil.copy(folder / "model.onnx", folder / "model_quantized.onnx")
    assert "model_quantized.onnx" in make_onnx_engine(folder, quantize="int8").info.description
    assert "model.onnx" in make_onnx_engine(folder).info.description


def test_the_hubs_layout(folder: Path, make_onnx_engine: Any) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    assert make_onnx_engine(folder).info.max_model_len == 64


# --- graphs that are not what their names say: optimum's Llama with something put in behind an input


def rewire(folder: Path, name: str, nodes: list[Any], constants: list[Any] = (), kind: int | None = None) -> None:
    """Let the graph read `name`_ where it read `name`; `nodes` make it, from `name` of type `kind`."""
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        node.input[:] = [f"{name}_" if used == name else used for used in node.input]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    known = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(constant for constant in constants if constant.name not in known)
    if kind is not None:
        next(i for i in model.graph.input if i.name == name).type.tensor_type.elem_type = kind
    onnx.save(model, folder / "model.onnx")


def test_one_that_loses_its_cache(folder: Path) -> None:
    zero = helper.make_tensor("zero", FLOAT, [], [0])
    rewire(folder, PAST[1], [helper.make_node("Mul", [PAST[1], "zero"], [f"{PAST[1]}_"])], [zero])
    assert "answers change when it continues from its own cache: its export is broken" in refusal(folder)


def test_one_that_fails(folder: Path) -> None:
    shape = helper.make_tensor("shape", INT64, [2], [3, 5])
    rewire(folder, "input_ids", [helper.make_node("Reshape", ["input_ids", "shape"], ["input_ids_"])], [shape])
    assert "model.onnx: the model fails on 8 tokens: " in refusal(folder)


def test_one_that_does_not_look_at_its_mask(folder: Path, golden: Any, make_onnx_engine: Any, planner: Any) -> None:
    """It runs in batches of equal length."""
    one = helper.make_tensor("one", INT64, [1], [1])
    nodes = [
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Expand", ["one", "mask_shape"], ["attention_mask_"]),
    ]
    rewire(folder, "attention_mask", nodes, [one])
    engine = make_onnx_engine(folder)
    assert engine._runner.rules.abilities == Abilities(pads=False, continues_in_chunks=True)
    assert "batches of equal length" in engine.info.description
    assert crowds(engine, planner, golden["prompts"]) == [golden["llama"]] * 2


def test_a_merged_decoder(folder: Path, golden: Any, make_onnx_engine: Any, planner: Any) -> None:
    """Its branch without a cache sees no past, whatever is given."""
    model = onnx.load(folder / "model.onnx")
    model.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    onnx.save(model, folder / "model.onnx")
    constants = [helper.make_tensor(n, INT64, [1], [v]) for n, v in (("none", 0), ("past_axis", 2))]
    for name in PAST:
        taken, emptied = f"{name}_taken", f"{name}_emptied"
        branches = {
            "then_branch": ("Identity", [name], taken),
            "else_branch": ("Slice", [name, "none", "none", "past_axis"], emptied),
        }
        graphs = {
            branch: helper.make_graph(
                [helper.make_node(kind, inputs, [output])],
                branch,
                [],
                [helper.make_tensor_value_info(output, FLOAT, None)],
            )
            for branch, (kind, inputs, output) in branches.items()
        }
        rewire(folder, name, [helper.make_node("If", ["use_cache_branch"], [f"{name}_"], **graphs)], constants)
    engine = make_onnx_engine(folder)
    assert engine._runner._decoder.is_merged
    assert crowds(engine, planner, golden["prompts"]) == [golden["llama"]] * 2


def test_a_cache_in_float16(folder: Path, golden: Any, make_onnx_engine: Any, planner: Any) -> None:
    for name in PAST:
        rewire(folder, name, [helper.make_node("Cast", [name], [f"{name}_"], to=FLOAT)], kind=FLOAT16)
    model = onnx.load(folder / "model.onnx")
    for output in model.graph.output[1:]:
        model.graph.node.append(helper.make_node("Cast", [output.name], [f"{output.name}_half"], to=FLOAT16))
    names = {output.name: f"{output.name}_half" for output in model.graph.output[1:]}
    for node in model.graph.node:  # swap the names, so that the halves are the outputs
        node.output[:] = [f"{n}_full" if n in names else n.removesuffix("_half") for n in node.output]
        node.input[:] = [f"{n}_full" if n in names else n for n in node.input]
    for output in model.graph.output[1:]:
        output.type.tensor_type.elem_type = FLOAT16
    onnx.save(model, folder / "model.onnx")
    engine = make_onnx_engine(folder)
    assert str(engine._runner._decoder.dtype) == "float16"
    assert crowds(engine, planner, golden["prompts"]) == [golden["llama"]] * 2


@pytest.fixture
def golden(optimum: Path) -> Any:
    return json.loads((optimum / "golden.json").read_text())
