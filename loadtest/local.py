"""`make bench`: serves the bundled model on a free port, drives it, and stops it. Arguments go to `penstock bench`."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

READY = "Penstock is ready at "
# The bundled model holds 1,024 tokens: prompt and answer have to fit.
SIZES = ["--input-tokens", "256", "--output-tokens", "256"]


def main(arguments: list[str]) -> int:
    """The exit status of the bench, or 1 when no server came up."""
    key, admin_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    with serving((), key, admin_key) as url:
        if url is None:
            return 1
        bench = [sys.executable, "-m", "loadtest.cli", url, *SIZES, *arguments]
        keys = {"PENSTOCK_API_KEY": key, "PENSTOCK_BENCH_ADMIN_KEY": admin_key}
        return subprocess.call(bench, env=os.environ | keys)  # noqa: S603


@contextmanager
def serving(arguments: Sequence[str], key: str, admin_key: str) -> Iterator[str | None]:
    """The base URL of `penstock serve` with these arguments; None when it ended instead, having said why."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as data_dir:
        command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--data-dir", data_dir, *arguments]
        keys = {"PENSTOCK_API_KEY": key, "PENSTOCK_ADMIN_KEY": admin_key}
        environment = os.environ | keys | {"PENSTOCK_LOG_LEVEL": "warning"}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            yield _await_ready(server)
        finally:
            server.terminate()
            server.wait()


def _await_ready(server: "subprocess.Popen[str]") -> str | None:
    if server.stdout is not None:
        for line in server.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
