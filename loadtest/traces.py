"""Traces of production: Azure's CSV and Mooncake's JSONL, read from a file that the user names.

- Azure (github.com/Azure/AzurePublicDataset): `TIMESTAMP,ContextTokens,GeneratedTokens`.
- Mooncake (github.com/kvcache-ai/Mooncake): a JSON object a line, `timestamp` (ms), `input_length`,
  `output_length`, `hash_ids`: ids of blocks of 512 tokens, equal where the contents were. Prompts share them again.
"""

import csv
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from loadtest.records import BenchError, PlannedRequest
from loadtest.workloads import Draw, WorkloadName, Writer, random_of

BLOCK_TOKENS = 512  # of a hash id
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class TraceRow:
    at_s: float  # from the first row
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class _MooncakeRow(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]  # ms
    input_length: _Count
    output_length: _Count
    hash_ids: list[int] = []


_MOONCAKE = msgspec.json.Decoder(_MooncakeRow)


def read_trace(path: Path) -> list[TraceRow]:
    """In order of time. Raises BenchError, which names the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read the trace {path}: {error}") from None
    rows = list(_mooncake(path, lines) if lines and lines[0].startswith("{") else _azure(path, lines))
    if not rows:
        raise BenchError(f"{path}: no requests in it")
    rows.sort(key=lambda row: row.at_s)
    first = rows[0].at_s
    return [TraceRow(row.at_s - first, row.input_tokens, row.output_tokens, row.blocks) for row in rows]


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, start=1):
        try:
            row = _MOONCAKE.decode(line)
        except msgspec.DecodeError as error:
            raise BenchError(f"{path}:{number}: {error}") from None
        if row.hash_ids and len(row.hash_ids) != -(-row.input_length // BLOCK_TOKENS):
            raise BenchError(f"{path}:{number}: expected a hash id for every {BLOCK_TOKENS} of input_length")
        yield TraceRow(row.timestamp / 1000, row.input_length, row.output_length, tuple(row.hash_ids))


def _azure(path: Path, lines: list[str]) -> Iterator[TraceRow]:
    table = csv.DictReader(lines)
    if not set(AZURE_COLUMNS) <= set(table.fieldnames or ()):
        raise BenchError(f"{path}: expected a line of JSON with input_length, or columns {','.join(AZURE_COLUMNS)}")
    for row in table:
        try:
            moment, context, generated = (row[column] for column in AZURE_COLUMNS)
            yield TraceRow(_seconds(moment), _count(context), _count(generated))
        except (ValueError, TypeError) as error:
            raise BenchError(f"{path}:{table.line_num}: {error}") from None


def _seconds(moment: str) -> float:
    """The clock's zone does not matter, but that it has no summer time does."""
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()


def _count(text: str) -> int:
    if (count := int(text)) < 0:
        raise ValueError(f"{count} tokens")
    return count


@dataclass(frozen=True, slots=True)
class TraceWorkload:
    """The trace's requests in their order, with lengths times `scale`, then cut at the bounds (None: none).

    A length becomes 1 at least: servers take no empty prompt, and answer no 0 tokens. Contents are made up: a block
    that rows of the trace share is the same words in all of them; without hash ids no two prompts share anything.
    """

    source: str  # the file's name, for the report
    rows: tuple[TraceRow, ...]
    scale: float = 1.0
    max_input: int | None = None
    max_output: int | None = None
    as_token_ids: bool = False
    name = WorkloadName.TRACE

    def plan(self, draw: Draw) -> Iterator[PlannedRequest]:
        rng = random_of(self.name, draw)
        text = Writer(rng, draw.variant, as_token_ids=self.as_token_ids)
        blocks = _Blocks(draw, self.scale, as_token_ids=self.as_token_ids)
        for row in self.rows:
            inputs = self._scaled(row.input_tokens, self.max_input)
            prompt = blocks.prompt(row.blocks, inputs) if row.blocks else text.write(inputs)
            yield PlannedRequest(prompt, inputs, self._scaled(row.output_tokens, self.max_output), row.at_s)

    def num_cut(self, count: int) -> int:
        """Of the first `count` rows, those that a bound shortens."""
        return sum(
            self._scaled(row.input_tokens, None) != self._scaled(row.input_tokens, self.max_input)
            or self._scaled(row.output_tokens, None) != self._scaled(row.output_tokens, self.max_output)
            for row in self.rows[:count]
        )

    def describe(self) -> dict[str, object]:
        bounds = {"input_tokens": self.max_input, "output_tokens": self.max_output}
        return {"trace": self.source, "scale": self.scale} | {k: v for k, v in bounds.items() if v is not None}

    def _scaled(self, tokens: int, bound: int | None) -> int:
        return min(max(1, round(tokens * self.scale)), bound or tokens + 1)


class _Blocks:
    """Contents by hash id, each made when first needed, whatever came before it."""

    def __init__(self, draw: Draw, scale: float, *, as_token_ids: bool) -> None:
        self._draw = draw
        self._block_tokens = max(1, round(BLOCK_TOKENS * scale))
        self._as_token_ids = as_token_ids

    def prompt(self, ids: tuple[int, ...], length: int) -> str | tuple[int, ...]:
        """Of exactly this length: rounding may leave the last block longer or shorter than the others."""
        parts = [self._write(block, self._block_tokens) for block in ids[: length // self._block_tokens]]
        if (left := length - len(parts) * self._block_tokens) > 0:
            parts.append(self._write(ids[min(len(parts), len(ids) - 1)], left))
        return self._writer(0).join(*parts)

    def _write(self, block: int, length: int) -> str | tuple[int, ...]:
        return self._writer(block).write(length)

    def _writer(self, block: int) -> Writer:
        rng = random.Random(f"{self._draw.stream}/{self._draw.seed}/{block}")  # noqa: S311 - repeatable, not secret
        return Writer(rng, self._draw.variant, as_token_ids=self._as_token_ids)
