"""How much an engine that owns KV memory can hold."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import EngineError
from engines.types import EngineConfig


@dataclass(slots=True, frozen=True)
class KVSpace:
    """What is known when the model is loaded. `num_blocks` 0: as many as `memory_bytes` hold."""

    max_positions: int  # 0: the checkpoint states none
    block_size: int  # tokens
    block_bytes: int
    memory_bytes: int
    num_blocks: int = 0


@dataclass(slots=True, frozen=True)
class Capacity:
    max_model_len: int
    num_blocks: int


def plan_capacity(config: EngineConfig, space: KVSpace) -> Capacity:
    """As many blocks as the options or the free memory allow, and no more than can ever be in use.

    A context length that the configuration leaves open shrinks to what the memory holds. Raises EngineError.
    """
    max_model_len = _max_model_len(config, space.max_positions)
    needed = -(-max_model_len // space.block_size)
    num_blocks = space.num_blocks or min(space.memory_bytes // space.block_bytes, needed * config.max_num_seqs)
    if num_blocks >= needed:
        return Capacity(max_model_len, num_blocks)
    if num_blocks > 0 and not config.max_model_len:
        return Capacity(num_blocks * space.block_size, num_blocks)
    raise EngineError(
        f"KV memory: {num_blocks} blocks of {space.block_size} tokens hold less than one context of {max_model_len}: "
        f"lower max_model_len or set options.kv_memory_bytes to at least {needed * space.block_bytes}"
    )


def _max_model_len(config: EngineConfig, max_positions: int) -> int:
    if not (config.max_model_len or max_positions):
        raise EngineError("max_model_len: the checkpoint states no limit, so it must be set")
    if max_positions and config.max_model_len > max_positions:
        raise EngineError(f"max_model_len: {config.max_model_len} exceeds the model's {max_positions} positions")
    return config.max_model_len or max_positions
