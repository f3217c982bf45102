"""What a Triton says of one of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.base import EngineError
from engines.triton.tensors import Kind, TensorSpec


@dataclass(slots=True, frozen=True)
class TritonModel:
    """`where` names it in messages. `decoupled`: it may answer a request more than once, token by token."""

    where: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    decoupled: bool
    batch_size: int  # that its dynamic batcher makes; 0: it has none
    instances: int
    parameters: Mapping[str, str]

    def check(self, inputs: Mapping[str, Kind], outputs: Mapping[str, Kind]) -> None:
        """That it has these tensors, of a datatype that fits. Raises EngineError."""
        for side, wanted, found in (("input", inputs, self.inputs), ("output", outputs, self.outputs)):
            for name, kind in wanted.items():
                if name not in found:
                    raise EngineError(f"{self.where}: it has no {side} {name}; it has {', '.join(sorted(found))}")
                self._check_type(side, found[name], kind)

    def has(self, name: str, kind: Kind) -> bool:
        """Whether it has this optional input. Raises EngineError for one of a wrong datatype."""
        if name not in self.inputs:
            return False
        self._check_type("input", self.inputs[name], kind)
        return True

    def _check_type(self, side: str, tensor: TensorSpec, kind: Kind) -> None:
        if tensor.datatype not in kind.value:
            expected = " or ".join(kind.value[:2])
            raise EngineError(f"{self.where}: {side} {tensor.name} is {tensor.datatype}, expected {expected}")
