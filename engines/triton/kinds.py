"""Which of our two ways of speaking to a Triton a model wants."""

from __future__ import annotations

from engines.base import RemoteEngine, StreamEngine
from engines.triton.client import TritonClient
from engines.triton.engine import TritonEngine
from engines.triton.hosted import HostedEngine, is_hosted
from engines.types import EngineConfig


def create(config: EngineConfig) -> StreamEngine | RemoteEngine:
    """Asks the server; blocks. Raises EngineError."""
    model = TritonClient(config.url, config.remote_model, config.remote_version).describe(may_load=config.load)
    return HostedEngine(config, model) if is_hosted(model) else TritonEngine(config)
