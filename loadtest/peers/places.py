"""Where environments, weights and logs of the comparison lie, and what makes them: once, under an ignored folder."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from loadtest.peers.model import make
from loadtest.records import BenchError

INSIDE = Path(__file__).with_name("inside")
GGUF_KINDS = ("BF16", "Q8_0")


@dataclass(frozen=True, slots=True)
class Places:
    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    def gguf(self, kind: str) -> Path:
        return self.root / f"model-{kind}.gguf"

    def python(self, peer: str) -> Path:
        """The interpreter of a peer's environment, which `make` sets up. Raises BenchError."""
        path = self.root / peer / "bin" / "python"
        if not path.exists():
            raise BenchError(f"{self.root / peer} is no environment; make bench-peers makes it")
        return path

    def log(self, name: str) -> Path:
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        return self.root / "logs" / f"{name}.log"


def ensure_model(places: Places, tokenizer: Path) -> None:
    """Raises BenchError where there is neither a model nor a tokenizer to make it with."""
    if not (places.model / "config.json").exists():
        make(places.model, tokenizer)


def ensure_gguf(places: Places, kind: str) -> Path:
    """Raises BenchError."""
    target = places.gguf(kind)
    if not target.exists():
        unfinished = target.with_suffix(".unfinished")
        command = [str(places.python("llama")), str(INSIDE / "to_gguf.py"), str(places.model), str(unfinished), kind]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise BenchError(f"the conversion to {kind} failed: {done.stderr.strip()[-300:]}")
        unfinished.rename(target)
    return target
