"""The native engine: a transformers model over our own paged attention, KV memory and sampler."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from engines.base import EngineError, ThreadedStepEngine
from engines.capacity import KVSpace, plan_capacity
from engines.grammars.store import open_store
from engines.options import read_positive_integers
from engines.steps import StepPlan, StepResult, TextBatch
from engines.torch import loader, memory
from engines.torch.backend import AttentionBackend, KVSize
from engines.torch.backends import backend_for
from engines.torch.cpu.attention import KernelBackend
from engines.torch.cpu.model import use_kernels
from engines.torch.loader import LoadedModel
from engines.torch.model_runner import ModelRunner
from engines.torch.quantize import Int8Config, describe
from engines.torch.text_runner import open_texts
from engines.types import Continuation, EngineConfig, EngineInfo


@dataclass(slots=True, frozen=True)
class TorchOptions:
    """`options` of a model with engine = "torch". 0 lets the engine choose."""

    threads: int = 0  # of the CPU's matrix products; default: all cores
    kv_memory_bytes: int = 0
    num_blocks: int = 0  # instead of kv_memory_bytes
    token_budget: int = 0  # tokens a step; default 256 on a CPU, 2048 on a GPU
    block_size: int = 0  # tokens; default 16, for bfloat16 on a CPU 32, as many keys as its tiles take at a time


class TorchEngine(ThreadedStepEngine):
    """Runs StepPlans on a CPU. Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig) -> None:
        if config.quantize not in ("none", "int8"):
            raise EngineError(f'quantize: expected one of none, int8, got "{config.quantize}"')
        options = read_positive_integers(TorchOptions, config.options, config.kind)
        self._num_threads = options.threads or os.cpu_count() or 1
        torch.set_num_threads(self._num_threads)
        device = torch.device("cpu")
        int8 = Int8Config() if config.quantize == "int8" else None
        loaded = loader.load(config.path, config.dtype, device, int8)
        if not options.block_size:
            options = replace(options, block_size=32 if loaded.model.dtype is torch.bfloat16 else 16)
        backend = backend_for(device, loaded.model.dtype, options.block_size)
        self._weights = describe(loaded.model)
        self._kernels = use_kernels(loaded.model, loaded.layers) if backend is KernelBackend else "torch's layers"
        capacity = plan_capacity(config, _kv_space(options, loaded, backend))
        size = KVSize(capacity.num_blocks, options.block_size, loaded.model.dtype, loaded.model.device)
        self._attention = backend(loaded.layers, size)
        grammars = open_store(config)
        self._texts = open_texts(config, loaded.model)
        self._runner = ModelRunner(loaded.model, self._attention, loaded.vocab_size, grammars)
        super().__init__(
            EngineInfo(
                max_model_len=capacity.max_model_len,
                max_num_seqs=config.max_num_seqs,
                vocab_size=loaded.vocab_size,
                block_size=options.block_size,
                num_blocks=capacity.num_blocks,
                token_budget=options.token_budget or 256,
                description=self._describe(loaded),
                continuation=Continuation.SEEDED,
                takes_grammars=grammars is not None,
                tells_logprobs=True,
                vectors=self._texts.info if self._texts is not None else None,
            ),
            grammars,
        )

    def execute(self, plan: StepPlan) -> StepResult:
        self._set_threads()
        return self._runner.run(plan)

    def execute_texts(self, batch: TextBatch) -> list[bytes]:
        if self._texts is None:
            return super().execute_texts(batch)
        self._set_threads()
        return self._texts.run(batch)

    def lacks_memory(self, error: Exception) -> bool:
        return memory.is_short(error)

    def free_memory(self) -> None:
        memory.give_back()

    def _set_threads(self) -> None:
        if torch.get_num_threads() != self._num_threads:  # the setting belongs to a thread
            torch.set_num_threads(self._num_threads)

    def _describe(self, loaded: LoadedModel) -> str:
        return (
            f"torch {torch.__version__} {type(loaded.model).__name__} {self._weights} on {loaded.model.device.type}, "
            f"{self._num_threads} threads, {self._kernels}, attention by {self._attention.name}, "
            f"KV {self._attention.num_bytes / 2**20:.0f} MiB, "
            + (f"{self._texts.pooling} pooling" if self._texts is not None else "no embeddings")
        )


def open_engine(config: EngineConfig) -> ThreadedStepEngine:
    """The one for this machine's GPU, where there is one. Raises EngineError."""
    if not torch.cuda.is_available():
        return TorchEngine(config)
    from engines.torch.gpu.engine import GpuEngine  # a CPU does without

    return GpuEngine(config)


def _kv_space(options: TorchOptions, loaded: LoadedModel, backend: type[AttentionBackend]) -> KVSpace:
    return KVSpace(
        max_positions=loaded.max_positions,
        block_size=options.block_size,
        block_bytes=backend.token_bytes(loaded.layers, loaded.model.dtype) * options.block_size,
        memory_bytes=options.kv_memory_bytes or memory.default_kv_bytes(loaded.model.device),
        num_blocks=options.num_blocks,
    )
