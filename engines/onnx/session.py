"""An ONNX Runtime session on a CPU, and errors of one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.base import EngineError

Array = NDArray[Any]
VERSION: str = onnxruntime.__version__
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_SHORT = ("Failed to allocate memory", "bad allocation", "bad_alloc")
_FATAL = 4  # ONNX Runtime logs what it also raises


@dataclass(slots=True, frozen=True)
class Tensor:
    """An input or output of a graph. A dimension that is not fixed is None."""

    name: str
    shape: tuple[int | None, ...]
    type: str  # as ONNX Runtime writes it: tensor(float)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Raises EngineError for one that numpy has not."""
        if self.type not in _DTYPES:
            known = ", ".join(name[len("tensor(") : -1] for name in _DTYPES)
            raise EngineError(f"{self.name} is a {self.type}, expected one of {known}: export the model as float32")
        return np.dtype(_DTYPES[self.type])


class Session:
    """A loaded graph. `inputs` and `outputs` by name, in the graph's order."""

    def __init__(self, path: Path, num_threads: int = 0) -> None:
        """`num_threads` 0: all cores. Raises EngineError."""
        self.num_threads = num_threads or os.cpu_count() or 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), _options(self.num_threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own classes have no common base
            raise EngineError(f"{path}: can't be loaded: {one_line(error)}") from error
        self.inputs = _tensors(self._session.get_inputs())
        self.outputs = _tensors(self._session.get_outputs())

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """On a CPU nothing is copied on the way in (contiguous arrays) or out."""
        return list(self._session.run(list(outputs), dict(feeds)))


def _options(num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = _FATAL
    # A thread that spins while it waits takes the core that the gateway or another engine needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # it keeps a plan for every shape, and every step has another one
    return options


def _tensors(arguments: Sequence[Any]) -> dict[str, Tensor]:
    return {
        a.name: Tensor(a.name, tuple(d if isinstance(d, int) else None for d in a.shape), a.type) for a in arguments
    }


def one_line(error: Exception) -> str:
    """The end of a long message: ONNX Runtime's begin with the names of its own functions."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"... {text[-200:]}"


def is_short(error: Exception) -> bool:
    """Whether ONNX Runtime, which has no class for that, or numpy raised this for want of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _SHORT)
