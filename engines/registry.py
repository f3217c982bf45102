"""Engine kinds. Each factory imports its heavy library only when that kind is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.base import EngineError, RemoteEngine, StepEngine, StreamEngine, VectorEngine
from engines.types import EngineConfig, Task
from engines.vectors import is_static, task_of


def _torch(config: EngineConfig) -> StepEngine | VectorEngine:
    if is_static(Path(config.path)):
        from engines.static import StaticEngine

        return StaticEngine(config)
    if (task := task_of(config, generating_embeds=True)) is not Task.GENERATE:
        from engines.torch.embedder import TorchVectorEngine

        return TorchVectorEngine(config, task)
    from engines.torch.engine import open_engine

    return open_engine(config)


def _onnx(config: EngineConfig) -> StepEngine | VectorEngine:
    try:
        if (task := task_of(config)) is not Task.GENERATE:
            from engines.onnx.embedder import OnnxVectorEngine

            return OnnxVectorEngine(config, task)
        from engines.onnx.engine import OnnxEngine

        return OnnxEngine(config)
    except ModuleNotFoundError as error:
        raise EngineError(f'engine: onnx needs {error.name}: install it with pip install "penstock[onnx]"') from error


def _fake(config: EngineConfig) -> StepEngine | VectorEngine:
    if config.task in (Task.EMBED, Task.SCORE):
        from engines.fake_vectors import FakeVectorEngine

        return FakeVectorEngine(config)
    from engines.fake import FakeEngine

    return FakeEngine(config)


def _triton(config: EngineConfig) -> StreamEngine | RemoteEngine:
    try:
        from engines.triton.kinds import create

        return create(config)
    except ModuleNotFoundError as error:
        message = f'engine: triton needs {error.name}: install it with pip install "penstock[triton]"'
        raise EngineError(message) from error


Engine = StepEngine | StreamEngine | RemoteEngine | VectorEngine
FACTORIES: dict[str, Callable[[EngineConfig], Engine]] = {
    "torch": _torch,
    "onnx": _onnx,
    "triton": _triton,
    "fake": _fake,
}


def create(config: EngineConfig) -> Engine:
    """Build and load the engine; may take minutes. Raises EngineError."""
    if config.kind not in FACTORIES:
        raise EngineError(f'engine: expected one of {", ".join(FACTORIES)}, got "{config.kind}"')
    return FACTORIES[config.kind](config)


def check_generates(engine: EngineConfig) -> None:
    """By the model's files, before anything is loaded. Raises EngineError: a session has no vectors."""
    if engine.path and (task := task_of(engine)) is not Task.GENERATE:
        does = "embeds texts" if task is Task.EMBED else "scores pairs of texts"
        raise EngineError(
            f"{engine.path}: this model {does}; inside a Triton expected one that generates: serve it without a Triton"
        )
