"""How much KV memory the native engine takes when its configuration does not say."""

from __future__ import annotations

import torch

from engines import memory


def default_kv_bytes(device: torch.device) -> int:
    """A share of the device's free memory; on a CPU within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 2 * memory.SHARE)
    return memory.default_kv_bytes()
