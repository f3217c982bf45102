"""ONNX Runtime on a CPU: an exported decoder over our own paged KV memory and sampler.

The graph takes a batch's whole cache in and gives it back one token longer. So a batch's cache is gathered from the
blocks only when its members change, and otherwise handed straight on; what is new is written to the blocks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines import memory
from engines.base import EngineError, ThreadedStepEngine
from engines.capacity import KVSpace, plan_capacity
from engines.grammars.store import open_store
from engines.onnx.batches import BatchRules
from engines.onnx.decoder import Decoder
from engines.onnx.folder import GraphFile, ModelConfig, find_graph
from engines.onnx.kv_cache import PagedKVCache
from engines.onnx.probe import Abilities, probe
from engines.onnx.runner import OnnxRunner
from engines.onnx.session import VERSION, Session, is_short
from engines.options import read_positive_integers
from engines.steps import StepPlan, StepResult
from engines.types import Continuation, EngineConfig, EngineInfo

_COPIES = 3  # of the KV memory at the worst: the blocks, a run's input, its output
_TOUCHES = 4  # times that a run reads or writes each byte of its cache
_TOKEN_BUDGET = 256


@dataclass(slots=True, frozen=True)
class OnnxOptions:
    """`options` of a model with engine = "onnx". 0 lets the engine choose."""

    threads: int = 0  # default: all cores
    kv_memory_bytes: int = 0
    num_blocks: int = 0  # instead of kv_memory_bytes
    token_budget: int = 0  # tokens a step; default 256
    block_size: int = 16  # tokens


class OnnxEngine(ThreadedStepEngine):
    """Runs StepPlans. Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig) -> None:
        options = read_positive_integers(OnnxOptions, config.options, config.kind)
        folder = Path(config.path)
        loaded = load(folder, config, options.threads)
        space = _kv_space(options, loaded, ModelConfig(folder))
        capacity = plan_capacity(config, space)
        self._cache = PagedKVCache(loaded.decoder.cache, capacity.num_blocks, options.block_size, loaded.decoder.dtype)
        grammars = open_store(config)
        self._runner = OnnxRunner(loaded.decoder, self._cache, _batch_rules(loaded), grammars)
        super().__init__(
            EngineInfo(
                max_model_len=capacity.max_model_len,
                max_num_seqs=config.max_num_seqs,
                vocab_size=loaded.decoder.vocab_size,
                block_size=options.block_size,
                num_blocks=capacity.num_blocks,
                token_budget=options.token_budget or _TOKEN_BUDGET,
                description=self._describe(loaded, config),
                continuation=Continuation.SEEDED,
                takes_grammars=grammars is not None,
                tells_logprobs=True,
            ),
            grammars,
        )

    def execute(self, plan: StepPlan) -> StepResult:
        return self._runner.run(plan)

    def lacks_memory(self, error: Exception) -> bool:
        return is_short(error)

    def _describe(self, loaded: LoadedDecoder, config: EngineConfig) -> str:
        weights = "int8" if config.quantize == "int8" else str(loaded.decoder.dtype)
        batches = "" if loaded.abilities.pads else ", batches of equal length"
        return (
            f"onnxruntime {VERSION} {loaded.graph.path.name} {weights}, {loaded.num_threads} threads, "
            f"KV {self._cache.bytes / 2**20:.0f} MiB{batches}"
        )


@dataclass(slots=True, frozen=True)
class LoadedDecoder:
    graph: GraphFile
    decoder: Decoder
    abilities: Abilities
    num_threads: int


def load(folder: Path, config: EngineConfig, num_threads: int) -> LoadedDecoder:
    """The folder's decoder, tried out. Raises EngineError, which names the file."""
    if config.quantize not in ("none", "int8"):
        raise EngineError(f'quantize: expected one of none, int8, got "{config.quantize}"')
    int8 = config.quantize == "int8"
    graph = find_graph(folder, int8=int8)
    session = open_session(graph, num_threads, int8=int8)
    try:
        decoder = Decoder(session, ModelConfig(folder))
        _check_dtype(config.dtype, decoder)
        return LoadedDecoder(graph, decoder, probe(decoder, is_int8=int8), session.num_threads)
    except EngineError as error:
        raise EngineError(f"{graph.path}: {error}") from error


def open_session(graph: GraphFile, num_threads: int, *, int8: bool) -> Session:
    """With `int8`, of the graph's int8 twin, which is made where the folder has none."""
    if not int8 or graph.is_int8:
        return Session(graph.path, num_threads)
    from engines.onnx.quantize import quantized  # its package is not needed otherwise, and loads slowly

    with quantized(graph.path) as path:
        return Session(path, num_threads)


def _check_dtype(dtype: str, decoder: Decoder) -> None:
    if dtype != "auto" and dtype != str(decoder.dtype):
        raise EngineError(f'dtype: the graph computes in {decoder.dtype}, set that or "auto", got "{dtype}"')


def _kv_space(options: OnnxOptions, loaded: LoadedDecoder, config: ModelConfig) -> KVSpace:
    return KVSpace(
        max_positions=config.max_positions,
        block_size=options.block_size,
        block_bytes=loaded.decoder.token_bytes * options.block_size,
        memory_bytes=options.kv_memory_bytes or memory.default_kv_bytes() // _COPIES,
        num_blocks=options.num_blocks,
    )


def _batch_rules(loaded: LoadedDecoder) -> BatchRules:
    """A run reads the weights once; a padded token is copied in, copied out, and read by the attention."""
    weights = sum(file.stat().st_size for file in loaded.graph.path.parent.glob(f"{loaded.graph.path.name}*"))
    free_padding = weights // (_TOUCHES * loaded.decoder.token_bytes)
    return BatchRules(loaded.abilities, loaded.decoder.is_merged, free_padding)
