"""What a machine allows a model: the floor under its times, so that a speed can be shown as a share of it.

`loadtest.machine` writes the facts of a model and a machine to a file. A decode step of b sequences with mean
context c takes at least the larger of (weights + b c KV bytes) / memory bandwidth and 2 b parameters / matrix rate,
a prompt token 2 parameters / matrix rate; attention's own arithmetic is left out, so the ceiling is a little high.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from loadtest.measure import duration_s, e2el_s
from loadtest.records import BenchError, RequestRecord


@dataclass(frozen=True, slots=True)
class Roofline:
    """The facts of a model on a machine."""

    parameters: float  # that a token is multiplied with
    weight_bytes: float
    kv_bytes_per_token: float
    bytes_per_s: float
    flop_per_s: float

    @classmethod
    def read(cls, path: Path) -> "Roofline":
        """A TOML file of these numbers. Raises BenchError."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BenchError(f"cannot read {path}: {error}") from None
        names = [field.name for field in fields(cls)]
        for name in [*names, *raw]:
            value = raw.get(name)
            if name not in names:
                raise BenchError(f"{path}: {name}: unknown; it has {', '.join(names)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise BenchError(f"{path}: {name}: expected a number above 0, got {value!r}")
        return cls(**{name: float(raw[name]) for name in names})

    def step_s(self, batch: float, context: float) -> float:
        """The least time of a decode step."""
        memory = (self.weight_bytes + batch * context * self.kv_bytes_per_token) / self.bytes_per_s
        return max(memory, 2 * self.parameters * batch / self.flop_per_s_at(batch))

    def prefill_s(self, tokens: float) -> float:
        """The least time of a prompt."""
        return 2 * self.parameters * tokens / self.flop_per_s

    def flop_per_s_at(self, rows: float) -> float:
        """The rate of matrix products of so many rows."""
        return self.flop_per_s

    def tokens_per_s(self, records: Sequence[RequestRecord]) -> float | None:
        """Output tokens a second at best, for these requests with as many in flight as there were. The prompts
        count in full: of a prefix cache it knows nothing. None where the server gave no counts."""
        completed = [record for record in records if record.failure is None]
        prompts = [record.prompt_tokens for record in completed]
        if not completed or None in prompts or duration_s(records) == 0:
            return None
        prompt = fmean(count or 0 for count in prompts)
        output = fmean(record.output_tokens for record in completed)
        batch = max(1.0, sum(map(e2el_s, records)) / duration_s(records))
        return output / (self.prefill_s(prompt) + output * self.step_s(batch, prompt + output / 2) / batch)
