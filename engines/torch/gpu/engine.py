"""The native engine on a GPU: paged attention by kernels of our own, CUDA graphs for decodes, sampling on the device,
and one step launched while another runs. Its parts were checked without a GPU; nothing here was ever timed on one."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from engines.base import EngineError, ThreadedStepEngine
from engines.capacity import KVSpace, plan_capacity
from engines.grammars.store import open_store
from engines.options import read_positive_integers
from engines.steps import StepPlan, StepResult, TextBatch
from engines.torch import loader, memory, quantize
from engines.torch.engine import TorchOptions
from engines.torch.gpu.kv_cache import PagedMemory
from engines.torch.gpu.opening import OpenAttention, by_kernels, open_runner, prepare
from engines.torch.gpu.runner import LaunchedStep
from engines.torch.loader import LoadedModel
from engines.torch.text_runner import open_texts
from engines.types import Continuation, EngineConfig, EngineInfo

_TOKEN_BUDGET = 2048  # a step's: a guess
_SLOTS_A_SEQUENCE = 2  # so that who is preempted seldom loses its slot


class GpuEngine(ThreadedStepEngine):
    """Runs StepPlans on a GPU. Loading happens in the constructor and raises EngineError.

    A second thread waits for the steps that were launched and reads them.
    """

    def __init__(
        self, config: EngineConfig, device: torch.device | None = None, attention: OpenAttention | None = None
    ) -> None:
        """`device`, `attention`: the GPU and the kernels; tests without a GPU have others."""
        if config.quantize != "none" or quantize.is_saved(loader.load_config(Path(config.path))):
            raise EngineError("int8 weights are not supported on a GPU: serve the model as it was before")
        options = read_positive_integers(TorchOptions, config.options, config.kind)
        options = replace(options, block_size=options.block_size or 16)
        loaded = loader.load(config.path, config.dtype, device or torch.device("cuda"))
        prepare(loaded.model)
        capacity = plan_capacity(config, _kv_space(options, loaded))
        slots = _SLOTS_A_SEQUENCE * config.max_num_seqs
        paged = PagedMemory(
            loaded.layers,
            capacity.num_blocks,
            options.block_size,
            slots,
            capacity.max_model_len,
            loaded.model.dtype,
            loaded.model.device,
        )
        grammars = open_store(config)
        self._texts = open_texts(config, loaded.model)
        open_attention = attention or by_kernels
        self._runner = open_runner(loaded, paged, open_attention(paged), config.max_num_seqs, grammars)
        self._launched: queue.SimpleQueue[tuple[Future[LaunchedStep], Future[StepResult]] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()
        super().__init__(
            EngineInfo(
                max_model_len=capacity.max_model_len,
                max_num_seqs=config.max_num_seqs,
                vocab_size=loaded.vocab_size,
                block_size=options.block_size,
                num_blocks=capacity.num_blocks,
                token_budget=options.token_budget or _TOKEN_BUDGET,
                steps_in_flight=2,
                description=self._describe(loaded, paged),
                continuation=Continuation.SEEDED,
                takes_grammars=grammars is not None,
                tells_logprobs=True,
                vectors=self._texts.info if self._texts is not None else None,
            ),
            grammars,
        )

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        answer: Future[StepResult] = Future()
        launched = self._enqueue(self._runner.launch, plan)
        launched.add_done_callback(lambda step: self._launched.put((step, answer)))
        return answer

    def execute(self, plan: StepPlan) -> StepResult:
        return self._runner.finish(self._runner.launch(plan))

    def _read(self) -> None:
        while (item := self._launched.get()) is not None:
            launched, answer = item
            if not answer.set_running_or_notify_cancel():
                continue  # the loop that awaited it has ended
            try:
                answer.set_result(self._runner.finish(launched.result()))
            except BaseException as error:  # the loop that awaits it decides what a failed step means
                answer.set_exception(error)

    def execute_texts(self, batch: TextBatch) -> list[bytes]:
        return super().execute_texts(batch) if self._texts is None else self._texts.run(batch)

    def lacks_memory(self, error: Exception) -> bool:
        return memory.is_short(error)

    def free_memory(self) -> None:
        memory.give_back()

    def close(self) -> None:
        super().close()
        self._launched.put(None)
        self._reader.join()

    def _describe(self, loaded: LoadedModel, paged: PagedMemory) -> str:
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        return (
            f"torch {torch.__version__} {type(loaded.model).__name__} {dtype} on {loaded.model.device.type}, "
            f"{self._runner.num_graphs} CUDA graphs, KV {paged.bytes / 2**20:.0f} MiB, "
            + (f"{self._texts.pooling} pooling" if self._texts is not None else "no embeddings")
        )


def _kv_space(options: TorchOptions, loaded: LoadedModel) -> KVSpace:
    token_bytes = sum(shape.elements for shape in loaded.layers) * loaded.model.dtype.itemsize
    return KVSpace(
        max_positions=loaded.max_positions,
        block_size=options.block_size,
        block_bytes=token_bytes * options.block_size,
        memory_bytes=options.kv_memory_bytes or memory.default_kv_bytes(loaded.model.device),
        num_blocks=options.num_blocks,
    )
