"""How the contract suite gets an engine of each kind. A new kind is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from engines.types import EngineConfig

CONTEXT = 256  # tokens
OTHER_CONTEXT = CONTEXT // 2  # of a second version, that tells it from the first


@dataclass(frozen=True)
class Kind:
    """`config` builds what a worker is started with; it skips the tests where the kind can't run. Its model takes the
    token ids 2 to 149 and never ends an answer by itself."""

    config: Callable[[pytest.FixtureRequest], EngineConfig]
    samples: bool = True  # whether its answers depend on the sampling parameters at all
    is_stepped: bool = True  # by our scheduler, and so in the worker's own process
    chain: bytes = b""  # in a prompt, makes every token follow from those before, where that needs to be asked for


def _fake(request: pytest.FixtureRequest) -> EngineConfig:
    return EngineConfig("fake", max_model_len=CONTEXT, options={"delay_ms": 4})


def _torch(request: pytest.FixtureRequest) -> EngineConfig:
    folder = request.getfixturevalue("model_folder")("llama")
    options = {"num_blocks": 400, "threads": 1}
    return EngineConfig("torch", str(folder), "float32", max_model_len=CONTEXT, options=options)


def _onnx(request: pytest.FixtureRequest) -> EngineConfig:
    folder = request.getfixturevalue("onnx_folder")("llama")
    options = {"num_blocks": 400, "threads": 1}
    return EngineConfig("onnx", str(folder), max_model_len=CONTEXT, options=options)


def _triton(request: pytest.FixtureRequest) -> EngineConfig:
    server = request.getfixturevalue("triton")
    return EngineConfig("triton", max_model_len=CONTEXT, name="m@1", url=server.url, remote_model="tokens-slow")


def _hosted(request: pytest.FixtureRequest) -> EngineConfig:
    server = request.getfixturevalue("hosting_triton")
    return EngineConfig("triton", name="m@1", url=server.url, remote_model="chat")


KINDS: dict[str, Kind] = {
    "fake": Kind(_fake, samples=False),
    "torch": Kind(_torch),
    "onnx": Kind(_onnx),
    "triton": Kind(_triton, samples=False, is_stepped=False, chain=b"!chain"),
    "hosted": Kind(_hosted, is_stepped=False),
}
