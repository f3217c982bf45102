"""Our own workers as models of a real Triton, as `penstock triton-repo` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from batching.triton_parameters import ModelParameters
from batching.triton_repository import TritonRepository


@dataclass(frozen=True)
class HostedModel:
    name: str
    parameters: ModelParameters = field(default_factory=lambda: ModelParameters("fake"))
    weights: Path | None = None

    def write(self, repository: Path) -> None:
        if not (repository / self.name).exists():
            TritonRepository(repository, self.name, 1, self.parameters, self.weights).write()
