"""How much KV memory the native engine takes when its configuration does not say, and what becomes of a shortage."""

from __future__ import annotations

import torch

from engines import memory


def default_kv_bytes(device: torch.device) -> int:
    """A share of the device's free memory; on a CPU within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 2 * memory.SHARE)
    return memory.default_kv_bytes()


def is_short(error: Exception) -> bool:
    """Whether torch raised this for want of memory: on a CPU it has no class of its own for that."""
    is_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def give_back() -> None:
    """To the device, what torch keeps for later allocations."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
