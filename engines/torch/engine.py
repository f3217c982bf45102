"""The native engine: a transformers model over our own paged attention, KV memory and sampler."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from engines.base import EngineError, ThreadedStepEngine
from engines.torch import loader
from engines.torch.kv_cache import PagedKVCache
from engines.torch.loader import LoadedModel
from engines.torch.memory import default_kv_bytes
from engines.torch.model_runner import ModelRunner
from engines.types import EngineConfig, EngineInfo, StepPlan, StepResult


@dataclass(slots=True, frozen=True)
class TorchOptions:
    """`options` of a model with engine = "torch". 0 lets the engine choose."""

    threads: int = 0  # of the CPU's matrix products; default: all cores
    kv_memory_bytes: int = 0
    num_blocks: int = 0  # instead of kv_memory_bytes
    token_budget: int = 0  # tokens a step; default 256 on CPU, 512 on a GPU
    block_size: int = 16  # tokens


def read_options(options: dict[str, Any]) -> TorchOptions:
    """Raises EngineError for an unknown name or a value that is not a positive integer."""
    names = list(TorchOptions.__dataclass_fields__)
    for name, value in options.items():
        if name not in names:
            raise EngineError(f"options.{name}: unknown; the torch engine knows {', '.join(names)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EngineError(f"options.{name}: expected a positive integer, got {value!r}")
    return TorchOptions(**options)


class TorchEngine(ThreadedStepEngine):
    """Runs StepPlans on a CPU or a GPU. Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig) -> None:
        if config.quantize != "none":
            raise EngineError(f'quantize: "{config.quantize}" is not supported yet by the torch engine')
        options = read_options(config.options)
        self._num_threads = options.threads or os.cpu_count() or 1
        torch.set_num_threads(self._num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = loader.load(config.path, config.dtype, device)
        capacity = plan_capacity(config, options, loaded)
        self._cache = PagedKVCache(
            loaded.layers, capacity.num_blocks, options.block_size, loaded.model.dtype, loaded.model.device
        )
        self._runner = ModelRunner(loaded.model, self._cache, loaded.vocab_size)
        super().__init__(
            EngineInfo(
                max_model_len=capacity.max_model_len,
                max_num_seqs=config.max_num_seqs,
                vocab_size=loaded.vocab_size,
                block_size=options.block_size,
                num_blocks=capacity.num_blocks,
                token_budget=options.token_budget or (256 if device.type == "cpu" else 512),
                description=self._describe(loaded),
            )
        )

    def execute(self, plan: StepPlan) -> StepResult:
        if torch.get_num_threads() != self._num_threads:  # the setting belongs to a thread
            torch.set_num_threads(self._num_threads)
        return self._runner.run(plan)

    def _describe(self, loaded: LoadedModel) -> str:
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        return (
            f"torch {torch.__version__} {type(loaded.model).__name__} {dtype} on {loaded.model.device.type}, "
            f"{self._num_threads} threads, KV {self._cache.bytes / 2**20:.0f} MiB"
        )


@dataclass(slots=True, frozen=True)
class Capacity:
    max_model_len: int
    num_blocks: int


def plan_capacity(config: EngineConfig, options: TorchOptions, loaded: LoadedModel) -> Capacity:
    """As many blocks as the options or the free memory allow, and no more than can ever be in use.

    A context length that the configuration leaves open shrinks to what the memory holds. Raises EngineError.
    """
    max_model_len = _max_model_len(config, loaded)
    block_bytes = sum(s.elements for s in loaded.layers) * options.block_size * loaded.model.dtype.itemsize
    needed = -(-max_model_len // options.block_size)
    memory = options.kv_memory_bytes or default_kv_bytes(loaded.model.device)
    num_blocks = options.num_blocks or min(memory // block_bytes, needed * config.max_num_seqs)
    if num_blocks >= needed:
        return Capacity(max_model_len, num_blocks)
    if num_blocks > 0 and not config.max_model_len:
        return Capacity(num_blocks * options.block_size, num_blocks)
    raise EngineError(
        f"KV memory: {num_blocks} blocks of {options.block_size} tokens hold less than one context of "
        f"{max_model_len}: lower max_model_len or set options.kv_memory_bytes to at least {needed * block_bytes}"
    )


def _max_model_len(config: EngineConfig, loaded: LoadedModel) -> int:
    limit = loaded.max_positions
    if not (config.max_model_len or limit):
        raise EngineError("max_model_len: the checkpoint states no limit, so it must be set")
    if limit and config.max_model_len > limit:
        raise EngineError(f"max_model_len: {config.max_model_len} exceeds the model's {limit} positions")
    return config.max_model_len or limit
