"""Copies between the host and the device that nobody waits for: by way of pinned memory, which torch keeps until the
copy has been made."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def send(numbers: NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Incoming:
    """A tensor on its way to the host. It has arrived when everything before it on the device's stream is done."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)

    def tolist(self) -> list[Any]:
        values: list[Any] = self._host.tolist()
        return values
