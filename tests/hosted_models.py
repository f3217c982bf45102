"""Our own workers as models of a real Triton, written by `penstock triton-repo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from server.cli import app


@dataclass(frozen=True)
class HostedModel:
    """`model` "" is the deterministic engine's."""

    name: str
    arguments: tuple[str, ...] = ()
    model: str = ""

    def write(self, repository: Path) -> None:
        if (repository / self.name).exists():
            return
        engine = () if self.model else ("--engine", "fake")
        command = ("triton-repo", self.model or "fake", str(repository), "--name", self.name, *engine)
        written = CliRunner().invoke(app, [*command, *self.arguments])
        assert written.exit_code == 0, written.output


def paced(name: str, delay_ms: int, *arguments: str) -> HostedModel:
    return HostedModel(name, ("--options", f'{{"delay_ms": {delay_ms}}}', *arguments))
