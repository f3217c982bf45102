"""How much KV memory an engine on a CPU takes when its configuration does not say."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.4  # of the memory that is free after the weights are loaded


def default_kv_bytes() -> int:
    """A share of the free memory, within the container's limit."""
    return int(SHARE * min(_available_bytes(), _container_headroom()))


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container_headroom() -> int:
    """What the cgroup (version 2) leaves to us; a very large number without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        return max(0, limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no cgroup, or "max"
        return 1 << 62
