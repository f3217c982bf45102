"""The C++ kernels of this folder: compiled once by the machine's own compiler, and called through ctypes.

One shared library for each level of CPU, with a plain C interface: no torch headers, so that it builds in seconds. It
is kept in the user's cache folder, under a name that changes with the sources and the flags. Where it is not there and
can't be compiled, the engine goes by torch alone.

    python -m engines.torch.cpu.library [LEVEL...]

builds it ahead of time, for other CPUs too.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("penstock.engine")

SOURCES = Path(__file__).parent / "kernels"
BUILD_TIMEOUT = 180.0  # seconds
# No -ffast-math: NaN has to stay NaN. No contraction: the numbers of a level don't hang on the compiler's taste.
COMMON_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")


@dataclass(slots=True, frozen=True)
class Level:
    """A kind of CPU: the compiler's flags for it, and the flags of /proc/cpuinfo that it must have."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_V4 = ("-march=x86-64-v4", "-mtune=native", "-mavx512vnni", "-mavx512bf16")
_V4_NEEDS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "avx512_vnni", "avx512_bf16"})
LEVELS = (  # the best first
    Level(
        "amx",
        (*_V4, "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
        _V4_NEEDS | {"amx_tile", "amx_int8", "amx_bf16"},
    ),
    Level("avx512", _V4, _V4_NEEDS),
    Level("avx2", ("-march=x86-64-v3",), frozenset({"avx2", "fma", "f16c", "bmi2"})),
    Level("plain", (), frozenset()),
)


def cpu_flags() -> frozenset[str]:
    """Of the first core: empty where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def levels() -> list[Level]:
    """Those of this CPU, the best first; PENSTOCK_CPU_LEVEL names one of them. Raises ValueError for another name."""
    fitting = [level for level in LEVELS if level.needs <= cpu_flags()]
    if not (wanted := os.environ.get("PENSTOCK_CPU_LEVEL")):
        return fitting
    if named := [level for level in fitting if level.name == wanted]:
        return named
    raise ValueError(f"PENSTOCK_CPU_LEVEL={wanted}: expected one of {', '.join(level.name for level in fitting)}")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Compiled if need be, which takes seconds; None where it can't be, having said why in the log.

    PENSTOCK_CPU_LEVEL=none says that it should not be.
    """
    if os.environ.get("PENSTOCK_CPU_LEVEL") == "none":
        return None
    try:
        return _loaded(levels())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("no CPU kernels of our own, torch alone computes: %s", _reason(error))
        return None


def _loaded(fitting: list[Level]) -> ctypes.CDLL:
    """The best that the system lets us use: it may refuse AMX. Raises OSError, SubprocessError."""
    for level in fitting:
        loaded = ctypes.CDLL(str(build(level)))
        if loaded.penstock_init():
            return loaded
    raise OSError("the system does not let us use what this CPU has")


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    return " ".join(output.split())[:300]


def build(level: Level) -> Path:
    """The compiled library of a level. Raises OSError or SubprocessError."""
    target = _folder() / f"kernels-{level.name}-{_digest(level)}.so"
    if target.exists():
        return target
    compiler = _compiler()
    sources = sorted(str(path) for path in SOURCES.glob("*.cpp"))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *COMMON_FLAGS, *level.flags, *sources, "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT)  # noqa: S603
        made.replace(target)  # at once: another worker may be building it too
    return target


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise OSError("no C++ compiler (g++, c++, clang++)")


def _folder() -> Path:
    """Ours alone: what lies in it is executed. PENSTOCK_KERNEL_DIR names another."""
    if named := os.environ.get("PENSTOCK_KERNEL_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def _digest(level: Level) -> str:
    digest = hashlib.sha256()
    for part in (platform.machine(), *COMMON_FLAGS, *level.flags):
        digest.update(part.encode() + b"\0")
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def main(names: list[str]) -> int:
    for level in [level for level in LEVELS if level.name in names] if names else levels()[:1]:
        print(build(level))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
