"""A naive planner that drives a step engine, and tiny random models to drive it with."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engines.base import StepEngine
from engines.onnx.engine import OnnxEngine
from engines.steps import NewSequence, ScheduledSequence, StepPlan, StepResult
from engines.torch.cpu.attention import KernelBackend
from engines.torch.engine import TorchEngine
from engines.types import EngineConfig, SamplingParams, TokenLogprobs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BUNDLED = Path(__file__).resolve().parents[2] / "models" / "tiny-chat"
DATA = Path(__file__).resolve().parent / "data"


@dataclass
class Job:
    """One sequence as the planner sees it: counts of tokens, never the tokens that were sampled."""

    new: NewSequence
    num_new_tokens: int
    num_known: int
    num_computed: int = 0
    num_sampled: int = 0
    table: list[int] = field(default_factory=list)
    prefix_of: Job | None = None

    @property
    def is_done(self) -> bool:
        return self.num_sampled == self.num_new_tokens


class Planner:
    """Random chunks, groups, block tables and preemptions. It never waits for a step before planning the next."""

    def __init__(self, engine: StepEngine, seed: int = 0, preempt: float = 0.0, max_chunk: int = 64) -> None:
        self.engine, self.preempt, self.max_chunk = engine, preempt, max_chunk
        self.random = random.Random(seed)
        self.free = list(range(engine.info.num_blocks))
        self.random.shuffle(self.free)
        self.shared: set[int] = set()
        self.jobs: list[Job] = []
        self.unseen: list[NewSequence] = []
        self.finished: list[int] = []
        self.futures: list[tuple[StepPlan, Future[StepResult]]] = []
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[int, dict[int, TokenLogprobs]] = {}  # by position

    def add(self, prompt: list[int], num_new_tokens: int, prefix_of: int | None = None, **sampling: Any) -> int:
        """`prefix_of`: take the full blocks of that sequence's prompt over once they are computed."""
        params = SamplingParams(max_tokens=num_new_tokens, **({"temperature": 0.0} | sampling))
        new = NewSequence(len(self.jobs), prompt, params)
        other = None if prefix_of is None else self.jobs[prefix_of]
        self.jobs.append(Job(new, num_new_tokens, len(prompt), prefix_of=other))
        self.unseen.append(new)
        return new.sequence_id

    def run(self) -> dict[int, list[int]]:
        """The tokens that were sampled for each sequence."""
        while not all(job.is_done for job in self.jobs):
            plan = self._plan()
            self.futures.append((plan, self.engine.submit(plan)))
        tokens: dict[int, list[int]] = {job.new.sequence_id: [] for job in self.jobs}
        for plan, future in self.futures:
            result = future.result(60)
            for sequence_id, token in result.tokens.items():
                tokens[sequence_id].append(token)
            self._keep_logprobs(plan, result)
        self.futures.clear()
        return tokens

    def _keep_logprobs(self, plan: StepPlan, result: StepResult) -> None:
        for sequence_id, told in result.logprobs.items():
            self.logprobs.setdefault(sequence_id, []).append(told)
        for item in (member for group in plan.groups for member in group):
            of_prompt = result.prompt_logprobs.get(item.sequence_id, [])
            by_position = self.prompt_logprobs.setdefault(item.sequence_id, {})
            by_position |= {item.start + 1 + i: told for i, told in enumerate(of_prompt)}

    def _plan(self) -> StepPlan:
        live = [job for job in self.jobs if not job.is_done]
        preempted = [job.new.sequence_id for job in live if self._preempts(job)]
        ready = [job for job in live if self._may_run(job)]
        chosen = self.random.sample(ready, self.random.randint(1, len(ready)))
        groups: list[list[ScheduledSequence]] = [[] for _ in range(self.random.randint(1, 3))]
        for job in chosen:
            self.random.choice(groups).append(self._schedule(job))
        plan = StepPlan([g for g in groups if g], self.unseen, self.finished, preempted)
        self.unseen, self.finished = [], []
        for job in chosen:
            if job.is_done:
                self._finish(job)
        return plan

    def _preempts(self, job: Job) -> bool:
        if not job.num_computed or self.random.random() >= self.preempt:
            return False
        self._release(job)
        job.num_computed = 0
        return True

    def _may_run(self, job: Job) -> bool:
        other = job.prefix_of
        if other is None or job.num_computed:
            return True
        full = len(other.new.prompt_token_ids) // self.engine.info.block_size
        if other.num_computed < full * self.engine.info.block_size:
            return other.is_done
        job.table = other.table[:full]
        self.shared.update(job.table)
        job.num_computed = full * self.engine.info.block_size
        return True

    def _schedule(self, job: Job) -> ScheduledSequence:
        wanted = job.num_known - job.num_computed
        count = wanted if self.random.random() < 0.5 else self.random.randint(1, wanted)
        count = min(count, self.max_chunk)
        start, end = job.num_computed, job.num_computed + count
        while len(job.table) * self.engine.info.block_size < end:
            job.table.append(self.free.pop(0))
        samples = end == job.num_known
        job.num_computed, job.num_known = end, job.num_known + samples
        job.num_sampled += samples
        return ScheduledSequence(job.new.sequence_id, start, count, samples, list(job.table))

    def _release(self, job: Job) -> None:
        self.free += [block for block in job.table if block not in self.shared]
        job.table = []

    def _finish(self, job: Job) -> None:
        self.finished.append(job.new.sequence_id)
        if not any(other.prefix_of is job and not other.num_computed for other in self.jobs):
            self._release(job)


TINY = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GEMMA: dict[str, Any] = {"head_dim": 16, "tie_word_embeddings": False}  # tied, random ones repeat one token
_TWO_KINDS = ["sliding_attention", "full_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**TINY),
    "llama_tied_mha": lambda: transformers.LlamaConfig(
        **TINY | {"num_key_value_heads": 4, "tie_word_embeddings": True}
    ),
    "qwen2": lambda: transformers.Qwen2Config(**TINY),
    "qwen2_window": lambda: transformers.Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=20, layer_types=_TWO_KINDS
    ),
    "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=20),
    "mixtral": lambda: transformers.MixtralConfig(
        **TINY | {"intermediate_size": 32}, num_local_experts=4, num_experts_per_tok=2
    ),
    "phi": lambda: transformers.PhiConfig(**TINY | {"hidden_size": 64}, partial_rotary_factor=0.5),
    "phi3": lambda: transformers.Phi3Config(**TINY, sliding_window=30),
    "gemma": lambda: transformers.GemmaConfig(**TINY, **_GEMMA),
    "gemma2": lambda: transformers.Gemma2Config(
        **TINY, **_GEMMA, query_pre_attn_scalar=1, sliding_window=20, layer_types=_TWO_KINDS, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **TINY, **_GEMMA, query_pre_attn_scalar=1, sliding_window=20, layer_types=_TWO_KINDS
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **TINY | {"intermediate_size": 32},
        head_dim=16,
        sliding_window=20,
        layer_types=_TWO_KINDS,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(  # values are narrower than keys
        **TINY | {"num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**TINY, is_decoder=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=160, n_embd=48, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, eos_token_id=None
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=160,
        hidden_size=48,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        init_std=0.3,
        eos_token_id=None,
        word_embed_proj_dim=48,
    ),
}


def save_model(name: str, folder: Path) -> Path:
    """A random float32 checkpoint whose greedy choices are not near ties."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).float()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = save_model(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return get


@pytest.fixture
def make_engine() -> Iterator[Callable[..., TorchEngine]]:
    engines: list[TorchEngine] = []

    def make(folder: Path, **config: Any) -> TorchEngine:
        options = {"num_blocks": 200, "threads": 1} | config.pop("options", {})
        config = {"dtype": "float32", "max_num_seqs": 64} | config
        engines.append(TorchEngine(EngineConfig("torch", str(folder), options=options, **config)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are made attend by torch alone, as where there is no compiler."""
    monkeypatch.setattr(KernelBackend, "serves", lambda *_: False)


@pytest.fixture
def planner() -> type[Planner]:
    return Planner


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data (models and golden files), which this checkout lacks")
    return SHARED


@pytest.fixture(scope="session")
def onnx_folder(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Our own export of one of CONFIGS, or of the bundled model by its name."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            from engines.torch.export_onnx import export  # loads slowly

            source = BUNDLED if name == BUNDLED.name else model_folder(name)
            folders[name] = tmp_path_factory.mktemp(f"{name}-onnx")
            export(source, folders[name])
        return folders[name]

    return get


@pytest.fixture(scope="session")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real exports by optimum; see data/README.md."""
    folder = tmp_path_factory.mktemp("optimum")
    with tarfile.open(DATA / "optimum.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def make_onnx_engine() -> Iterator[Callable[..., OnnxEngine]]:
    engines: list[OnnxEngine] = []

    def make(folder: Path, **config: Any) -> OnnxEngine:
        options = {"num_blocks": 200, "threads": 1} | config.pop("options", {})
        engines.append(OnnxEngine(EngineConfig("onnx", str(folder), options=options, **config)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
