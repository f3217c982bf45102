"""Tensors as Triton's protocol carries them: named, typed, and little-endian bytes.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

Value = bytes | int | float | bool

_FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}


class Kind(Enum):
    """What a convention puts into a tensor, and the datatypes that can hold it."""

    TEXT = ("BYTES",)
    INTEGER = ("INT32", "INT64", "UINT32", "UINT64", "INT16", "UINT16")
    NUMBER = ("FP32", "FP64", "FP16")
    FLAG = ("BOOL",)


@dataclass(slots=True, frozen=True)
class TensorSpec:
    """A tensor of a model's metadata. Of a model that takes batches, `shape` has their dimension too; -1 is any."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def shape_of(self, count: int) -> list[int]:
        """[count], [1, count], ... as this tensor's rank demands."""
        return [1] * (len(self.shape) - 1) + [count]

    def encode(self, values: Sequence[Value]) -> bytes:
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(value)) + value for value in values if isinstance(value, bytes))
        return struct.pack(f"<{len(values)}{_FORMATS[self.datatype]}", *values)

    def fit(self, value: int) -> int:
        """An integer that need not keep its value (a seed), in the range that this tensor holds."""
        bits = 8 * struct.calcsize(_FORMATS[self.datatype]) - self.datatype.startswith("INT")
        return value & ((1 << bits) - 1)


def decode(datatype: str, data: bytes) -> list[Value]:
    """The flattened values."""
    if datatype != "BYTES":
        return list(struct.unpack(f"<{len(data) // struct.calcsize(_FORMATS[datatype])}{_FORMATS[datatype]}", data))
    values: list[Value] = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        values.append(data[start + 4 : start + 4 + length])
        start += 4 + length
    return values
