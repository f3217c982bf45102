"""`make bench-triton`: what grouping by length does, on a Triton of its own. Arguments go to loadtest.grouping.

The model takes 2 ms a token for a whole batch, of 16 at most and, as Triton's dynamic batcher wants it, of one length.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.byte_tokenizer import write_byte_tokenizer
from tests.triton_models import TritonModel
from tests.triton_server import ROOT, WHY_NOT, TritonServer, is_installed

MODEL = TritonModel("whole-batches", "tokens", delay_ms=2, decoupled=False, max_batch_size=16, queue_delay_us=10_000)


def main(arguments: list[str]) -> int:
    """The exit status of the measurement."""
    if not is_installed():
        print(WHY_NOT, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="penstock-triton-") as name:
        folder = Path(name)
        server = TritonServer(folder, [MODEL])
        server.start()
        try:
            where = ["--triton-url", server.url, "--triton-http", server.http_url, "--model", MODEL.name]
            where += ["--tokenizer", str(write_byte_tokenizer(folder))]
            return subprocess.call([sys.executable, "-m", "loadtest.grouping", *where, *arguments], cwd=ROOT)
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
