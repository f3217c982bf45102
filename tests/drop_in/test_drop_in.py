"""Clients that other people wrote, unchanged, each used as its own documentation uses it.

They run in an environment of their own, `.clients`: what they depend on is not what we do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.drop_in.conftest import MODEL
from tests.penstock_process import API_KEY, PenstockProcess

HERE = Path(__file__).parent
LIMIT = 110  # seconds
PYTHON = sorted(path.name for pattern in ("*_client.py", "websocket_*.py") for path in HERE.glob(pattern))
JAVASCRIPT = sorted(path.name for path in HERE.glob("*.mjs"))


def environment(server: PenstockProcess, clients: Path, folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{clients / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "FOLDER": str(folder),
        "MODEL": MODEL,
        "OPENAI_BASE_URL": server.base_url,
        "OPENAI_API_KEY": API_KEY,
        "WEBSOCKET_URL": server.websocket_url,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would ask the internet
        "LANGSMITH_TRACING": "false",
    }


def run(command: list[str], script: str, server: PenstockProcess, clients: Path, folder: Path) -> None:
    """The script by its standard input: Node looks for packages where it stands."""
    done = subprocess.run(
        command,
        input=(HERE / script).read_text(encoding="utf-8"),
        cwd=clients,
        env=environment(server, clients, folder),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize("script", PYTHON)
def test_python(script: str, server: PenstockProcess, clients: Path, tmp_path: Path) -> None:
    run([str(clients / "bin" / "python"), "-"], script, server, clients, tmp_path)


def test_the_command_llm(server: PenstockProcess, clients: Path, tmp_path: Path) -> None:
    run(["sh"], "llm_command.sh", server, clients, tmp_path)


@pytest.mark.parametrize("script", JAVASCRIPT)
def test_javascript(script: str, server: PenstockProcess, clients: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (clients / "node_modules").is_dir():
        pytest.skip("no Node or no npm here: the clients in JavaScript are not installed")
    run([node, "--input-type=module", "-"], script, server, clients, tmp_path)
