"""The CPU attention kernel against attention as its definition says, and its promise: equal bits in every company."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engines.torch.attention import LayerCall
from engines.torch.backend import KVSize, LayerShape
from engines.torch.cpu import attention as cpu_attention
from engines.torch.cpu import library as cpu_library
from engines.torch.cpu.attention import KernelBackend, KernelStep

LEVELS = [level.name for level in cpu_library.LEVELS if level.needs <= cpu_library.cpu_flags()]
LENGTHS = [1, 2, 15, 16, 17, 31, 33, 64, 127, 128, 129, 200, 256, 257, 640, 700]
Piece = tuple[int, int, int]  # sequence, start, number of tokens


@pytest.fixture(params=sorted({LEVELS[0], LEVELS[-1]}), scope="module")
def kernels(request: pytest.FixtureRequest) -> Any:
    """At this machine's best level, and at that of any CPU."""
    level = next(level for level in cpu_library.LEVELS if level.name == request.param)
    try:
        loaded = ctypes.CDLL(str(cpu_library.build(level)))
    except OSError as error:
        pytest.skip(f"no kernels here: {error}")
    if not loaded.penstock_init():
        pytest.skip(f"the system does not allow {level.name}")
    return loaded


@pytest.fixture(autouse=True)
def two_threads(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cpu_attention, "library", lambda: kernels)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass
class Layer:
    """One layer and the whole texts of some sequences."""

    lengths: list[int]
    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 64
    value_dim: int = 64
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    block_size: int = 16
    query: list[torch.Tensor] = field(init=False)  # by sequence: [heads, tokens, dim]
    key: list[torch.Tensor] = field(init=False)
    value: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        source = torch.Generator().manual_seed(sum(self.lengths))

        def rows(heads: int, dim: int) -> list[torch.Tensor]:
            return [torch.randn(heads, n, dim, generator=source).to(self.dtype) for n in self.lengths]

        self.query, self.key = rows(self.heads, self.key_dim), rows(self.kv_heads, self.key_dim)
        self.value = rows(self.kv_heads, self.value_dim)
        self.sinks = torch.randn(self.heads, generator=source) if self.has_sinks else None
        self.scaling = 1.5 * self.key_dim**-0.5
        per_sequence = [-(-n // self.block_size) + 1 for n in self.lengths]
        size = KVSize(sum(per_sequence) + 3, self.block_size, self.dtype, torch.device("cpu"))
        self.backend = KernelBackend([LayerShape(self.kv_heads, self.key_dim, self.value_dim)], size)
        blocks = list(range(size.num_blocks))
        random.Random(1).shuffle(blocks)
        self.tables = [[blocks.pop() for _ in range(n)] for n in per_sequence]

    def step(self, pieces: list[Piece]) -> list[torch.Tensor]:
        """The output of each piece [tokens, heads, value_dim]."""

        def packed(states: list[torch.Tensor]) -> torch.Tensor:
            rows = [states[s][:, start : start + count].transpose(0, 1) for s, start, count in pieces]
            return torch.cat(rows).transpose(0, 1)[None]  # the heads of a token side by side, as layers give them

        tables = np.zeros((len(pieces), max(len(self.tables[s]) for s, _, _ in pieces)), dtype=np.int64)
        for row, (s, _, _) in zip(tables, pieces, strict=True):
            row[: len(self.tables[s])] = self.tables[s]
        starts, counts = (np.array([piece[i] for piece in pieces], dtype=np.int64) for i in (1, 2))
        call = LayerCall(
            SimpleNamespace(layer_idx=0),
            packed(self.query),
            packed(self.key),
            packed(self.value),
            self.scaling,
            self.window,
            self.softcap,
            self.sinks,
        )
        output = KernelStep(self.backend, starts, counts, tables).attend(call, {})
        return list(output[0].split(counts.tolist()))

    def alone(self, chunk: int = 10**6) -> list[torch.Tensor]:
        """Of each whole sequence, computed in chunks of so many tokens."""
        answers = []
        for s, length in enumerate(self.lengths):
            cuts = range(0, length, chunk)
            answers.append(torch.cat([self.step([(s, i, min(chunk, length - i))])[0] for i in cuts]))
        return answers

    def crowd(self, seed: int) -> list[torch.Tensor]:
        """The same in steps of random pieces of random sequences."""
        source, done = random.Random(seed), [0] * len(self.lengths)
        answers: list[list[torch.Tensor]] = [[] for _ in self.lengths]
        while open_ones := [s for s, length in enumerate(self.lengths) if done[s] < length]:
            chosen = source.sample(open_ones, source.randint(1, len(open_ones)))
            pieces = [(s, done[s], min(source.choice([1, 1, 3, 40, 300]), self.lengths[s] - done[s])) for s in chosen]
            for (s, _, count), rows in zip(pieces, self.step(pieces), strict=True):
                answers[s].append(rows)
                done[s] += count
        return [torch.cat(rows) for rows in answers]

    def expected(self, s: int) -> torch.Tensor:
        group = self.heads // self.kv_heads
        query, key, value = (states[s].double() for states in (self.query, self.key, self.value))
        scores = query @ key.repeat_interleave(group, 0).transpose(1, 2) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        distance = torch.arange(self.lengths[s])[:, None] - torch.arange(self.lengths[s])
        hidden = (distance < 0) | (distance >= (self.window or 10**6))
        scores = scores.masked_fill(hidden, float("-inf"))
        if self.sinks is not None:
            scores = torch.cat([scores, self.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)], dim=2)
        weights = scores.softmax(dim=2)[..., : self.lengths[s]]
        return (weights @ value.repeat_interleave(group, 0)).transpose(0, 1)


def check(layer: Layer) -> None:
    tolerance = 2e-5 if layer.dtype == torch.float32 else 2e-2
    for s, rows in enumerate(layer.alone()):
        torch.testing.assert_close(rows.double(), layer.expected(s), rtol=tolerance, atol=tolerance)


DTYPES = [torch.float32, torch.bfloat16]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 40},
    "wide_window": {"window": 150},
    "softcap": {"softcap": 3.0},
    "sinks": {"has_sinks": True},
    "everything": {"window": 130, "softcap": 5.0, "has_sinks": True},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_definition(variant: str, dtype: torch.dtype) -> None:
    check(Layer([n for n in LENGTHS if n < 300], dtype=dtype, **VARIANTS[variant]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4, 7])
def test_groups_of_heads(group: int, dtype: torch.dtype) -> None:
    check(Layer([1, 17, 140], heads=group * 2, kv_heads=2, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("key_dim", "value_dim"), [(16, 16), (24, 16), (80, 80), (96, 96), (128, 128), (256, 256), (192, 128), (33, 7)]
)
def test_dimensions(key_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    check(Layer([1, 33, 150], key_dim=key_dim, value_dim=value_dim, dtype=dtype))


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 48])
def test_sizes_of_blocks(block_size: int) -> None:
    check(Layer([1, 47, 290], dtype=torch.bfloat16, block_size=block_size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("variant", ["plain", "wide_window", "everything"])
def test_a_row_has_the_same_bits_in_every_company(variant: str, kv_heads: int, dtype: torch.dtype) -> None:
    layer = Layer([400, 129, 33, 1], kv_heads=kv_heads, dtype=dtype, **VARIANTS[variant])
    expected = layer.alone()
    others = [layer.alone(chunk=1), layer.alone(chunk=50), layer.crowd(0), layer.crowd(1)]
    torch.set_num_threads(1)
    others.append(layer.crowd(2))
    for answers in others:
        assert all(torch.equal(one, other) for one, other in zip(expected, answers, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_context_is_shared_by_threads(dtype: torch.dtype) -> None:
    """One sequence of one KV head: its decode and a short chunk are cut along the keys."""
    layer = Layer([2000], heads=2, kv_heads=1, dtype=dtype)
    whole = layer.alone()[0]
    torch.testing.assert_close(whole.double(), layer.expected(0), rtol=2e-2, atol=2e-2)
    assert torch.equal(layer.step([(0, 1999, 1)])[0], whole[1999:])
    assert torch.equal(layer.step([(0, 1900, 100)])[0], whole[1900:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_belongs_to_others_never_reaches_a_result(dtype: torch.dtype) -> None:
    """NaN in every slot that the sequences have not written, and in one sequence's own keys and values."""
    layer = Layer([45, 30, 130, 129], dtype=dtype)
    expected = layer.alone()
    layer.backend.pools[0].fill_(float("nan"))  # these dimensions need no padding
    layer.key[1][:], layer.value[1][:] = float("nan"), float("nan")
    crowd = layer.crowd(3)
    for s in (0, 2, 3):
        assert torch.equal(crowd[s], expected[s])
    assert crowd[1].isnan().all()


def test_arguments_may_be_laid_out_in_any_way() -> None:
    layer = Layer([70])
    expected = layer.alone()[0]
    tables = np.array([layer.tables[0]], dtype=np.int64)
    step = KernelStep(layer.backend, np.array([0]), np.array([70]), tables)
    states = [tensors[0][None] for tensors in (layer.query, layer.key, layer.value)]
    states[0] = states[0].transpose(2, 3).contiguous().transpose(2, 3)
    call = LayerCall(SimpleNamespace(layer_idx=0), *states, layer.scaling)
    assert torch.equal(step.attend(call, {})[0], expected)
