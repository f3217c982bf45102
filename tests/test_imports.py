"""The rooms stay apart: who may import whom, and which room a heavy library lives in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("server", "batching", "engines", "quota", "loadtest")
MAY_IMPORT = {
    "server": {"batching", "engines", "quota", "loadtest"},
    "batching": {"engines"},
    "engines": set(),
    "quota": set(),
    "loadtest": set(),
}
# Of the engines, batching knows the nouns, the protocols and the registry: no implementation.
BATCHING_SEES = {"engines", *(f"engines.{name}" for name in ("types", "steps", "hosting", "base", "registry"))}
# It measures the GPU path from within, on a machine that may have nothing else.
GPU_CHECK = ("loadtest/gpu_check.py", "loadtest/gpu/")
# A library -> the files and folders that may import it.
HOMES = {
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
    "sqlalchemy": ("server/",),
    "alembic": ("server/store/",),
    "redis": ("quota/redis.py", "server/store/"),
    "torch": ("engines/torch/", "loadtest/peers/inside/", *GPU_CHECK),
    "transformers": ("engines/torch/", "loadtest/peers/inside/", *GPU_CHECK),
    "triton": ("engines/torch/gpu/", *GPU_CHECK),
    "onnxruntime": ("engines/onnx/",),
    "onnx": ("engines/onnx/",),
    "tritonclient": ("engines/triton/",),
    "llguidance": ("engines/grammars/",),
    "grpc": ("engines/triton/",),
    "triton_python_backend_utils": ("batching/triton_model.py",),
    "opentelemetry": ("server/tracing/",),
    "openai": (),
    "anthropic": (),
    "pydantic": ("server/",),
}
SCHEDULING = ("queue", "buckets", "scheduler", "text_scheduler", "blocks", "sequence", "stats")
IMPURE = {"asyncio", "time", "socket", "threading", "torch", "random"}


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: rooms are imported by their own names"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = name_of(path).split("/")[0]
    others = {name.split(".")[0] for name in imports(path)} & set(ROOMS) - {room}
    assert others <= (MAY_IMPORT[room] | ({"engines", "batching"} if name_of(path).startswith(GPU_CHECK) else set()))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_heavy_library_lives_in_one_room(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)} & set(HOMES)
    strangers = {library for library in used if not name_of(path).startswith(tuple(HOMES[library]) or ("-",))}
    assert not strangers


def test_batching_knows_no_engine() -> None:
    for path in sorted((ROOT / "batching").rglob("*.py")):
        modules_seen = {".".join(n.split(".")[:2]) for n in imports(path) if n.split(".")[0] == "engines"}
        assert modules_seen <= BATCHING_SEES, name_of(path)


@pytest.mark.parametrize("name", SCHEDULING)
def test_decisions_are_functions_of_plain_values(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports(ROOT / "batching" / f"{name}.py")}
    assert not used & IMPURE


def test_the_gateway_starts_without_torch() -> None:
    """Transitively too: its processes must start fast and never share a GIL with an engine."""
    import subprocess
    import sys

    heavy = {"torch", "transformers", "redis", "grpc", "tritonclient", "llguidance", "opentelemetry.sdk"}
    code = f"import sys, server.cli_serve, batching.worker; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"


def test_a_command_that_serves_nothing_starts_without_the_gateway() -> None:
    import subprocess
    import sys

    code = "import sys, server.cli; print({'fastapi', 'uvicorn', 'tokenizers', 'server.gateway'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
