"""The models that are served: every declared version, with its tokenizer and its workers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batching.child import start_all
from batching.link import WorkerLink
from batching.protocol import WorkerConfig
from batching.scheduler import SchedulerConfig
from batching.stats import WorkerStats
from engines.base import EngineError
from engines.types import Continuation, EngineConfig, EngineInfo, Task, VectorInfo
from server import model_files, privacy
from server.balancing import Balancer, Replica
from server.model_state import ModelState, Phase, Standing, starting, unloaded
from server.quarantine import Quarantine
from server.settings import Settings
from server.settings_sections import ModelSettings
from server.text.chat_template import ChatTemplate
from server.text.formats.format import PLAIN, Format, of_templates
from server.text.prompt import ChatEncoder
from server.text.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from server.text.tokenizer_files import read_json
from server.wire.limits import ModelLimits, SamplingDefaults

if TYPE_CHECKING:  # what it imports is an optional dependency
    from server.text.pii.detector import Detector

LinkMaker = Callable[[WorkerConfig, str], WorkerLink]
"""Start a worker so configured, or connect to it if somebody else starts it; the name of its replica is for logs."""


@dataclass(slots=True, frozen=True)
class Deployment:
    """One version of one model being served."""

    model: str
    version: str
    encoder: ChatEncoder
    limits: ModelLimits
    replicas: Sequence[Replica]
    fingerprint: str
    engine: str = ""  # its kind
    takes_text: bool = False  # its engine wants prompts as text
    continuation: Continuation = Continuation.NONE  # what each of its replicas can do with another one's answer
    task: Task = Task.GENERATE
    vectors: VectorInfo | None = None  # of the other tasks, and of models that generate and embed
    form: Format = PLAIN  # in which the model answers
    pii: Detector | None = None  # of what the model is not shown
    created: int = field(default_factory=lambda: int(time.time()))
    state: ModelState = field(default_factory=ModelState)
    quarantine: Quarantine = field(default_factory=Quarantine)
    balancer: Balancer = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "balancer", Balancer(self.replicas))

    @property
    def id(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def tokenizer(self) -> Tokenizer:
        return self.encoder.tokenizer

    @property
    def is_ready(self) -> bool:
        return any(replica.is_ready for replica in self.replicas)

    @property
    def standing(self) -> Standing:
        is_away = self.state.is_served and not self.is_ready
        return Standing.AWAY if is_away else Standing(self.state.phase)

    def check_served(self) -> None:
        """Raises Overloaded while it is not meant to serve."""
        if not self.state.is_served:
            raise starting(self.id) if self.state.phase is Phase.LOADING else unloaded(self.id)


class Registry:
    """Starts what the settings declare, all of it or nothing."""

    def __init__(self, settings: Settings, socket_dir: Path, make_link: LinkMaker) -> None:
        self._settings = settings
        self._socket_dir = socket_dir
        self._make_link = make_link
        self.deployments: dict[str, Deployment] = {}  # by name@version, in the order of their declaration

    async def start(self) -> None:
        """Load every model; returns when all of them serve. Raises EngineError, ModelFilesError or TokenizerError."""
        starting = [asyncio.create_task(self._deploy(model)) for model in self._settings.models]
        try:
            for deployment in await asyncio.gather(*starting):
                self.deployments[deployment.id] = deployment
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await _stop(task.result() for task in starting if _succeeded(task))
            raise

    async def stop(self) -> None:
        await _stop(self.deployments.values())

    @property
    def engines(self) -> dict[str, EngineInfo]:
        """What every started replica's engine is, by the replica's name."""
        links = [replica.link for deployment in self.deployments.values() for replica in deployment.replicas]
        return {link.name: link.info for link in links if link.info is not None}

    def replica_stats(self) -> Iterator[tuple[str, str, WorkerStats, bool]]:
        for deployment in self.deployments.values():
            for replica in deployment.replicas:
                yield deployment.model, deployment.version, replica.stats, replica.is_ready

    def set_aside(self) -> Iterator[tuple[str, str, int]]:
        """Model, version, and how many replicas this gateway sends nothing to but probes."""
        for deployment in self.deployments.values():
            num_set_aside = sum(replica.health.is_set_aside for replica in deployment.replicas)
            yield deployment.model, deployment.version, num_set_aside

    def standings(self) -> Iterator[tuple[str, str, Standing]]:
        for deployment in self.deployments.values():
            yield deployment.model, deployment.version, deployment.standing

    async def _deploy(self, model: ModelSettings) -> Deployment:
        folder = await asyncio.to_thread(_find_folder, model)
        encoder = await asyncio.to_thread(_load_encoder, model, folder)
        vocabulary = await asyncio.to_thread(self._write_vocabulary, model, encoder.tokenizer)
        links = [self._link(model, folder, vocabulary, index) for index in range(model.num_replicas)]
        await start_all(links)
        try:
            _check_alike(model, links)
            pii = privacy.detector_of(model, self._settings.pii)
            return _deployment(model, folder, encoder, [Replica(link) for link in links], pii)
        except BaseException:
            await asyncio.gather(*(link.stop() for link in links))
            raise

    def _write_vocabulary(self, model: ModelSettings, tokenizer: Tokenizer) -> str:
        """For engines that can hold answers to a grammar. "" for others."""
        vocabulary = tokenizer.vocabulary()
        if vocabulary is None or model.engine not in ("torch", "onnx"):
            return ""
        path = self._socket_dir / f"{hashlib.sha256(model.id.encode()).hexdigest()[:12]}.vocabulary"
        vocabulary.write(path)
        return str(path)

    def _link(self, model: ModelSettings, folder: Path | None, vocabulary: str, index: int) -> WorkerLink:
        name = f"{model.id}#{index}" if model.num_replicas > 1 else model.id
        # A short name: the path of a Unix socket ends at 107 bytes.
        socket = self._socket_dir / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.sock"
        config = WorkerConfig(
            socket_path=str(socket),
            engine=EngineConfig(
                kind=model.engine,
                path=str(folder or ""),
                dtype=model.dtype,
                quantize=model.quantize,
                max_model_len=model.max_model_len,
                max_num_seqs=model.max_num_seqs,
                options=model.options,
                task=model.task,
                pooling=model.pooling,
                matryoshka=model.matryoshka,
                name=name,
                url=model.url[index % len(model.url)] if model.url else "",
                remote_model=model.triton_model or model.name,
                remote_version=model.triton_version,
                vocabulary=vocabulary,
            ),
            scheduler=SchedulerConfig(max_queue=model.max_queue, queue_timeout=self._settings.timeouts.queue),
            log_level=self._settings.server.log_level,
            silence=self._settings.timeouts.worker_silence,
            step_timeout=self._settings.timeouts.step,
        )
        return self._make_link(config, name)


async def _stop(deployments: Iterable[Deployment]) -> None:
    await asyncio.gather(*(replica.link.stop() for deployment in deployments for replica in deployment.replicas))


def _succeeded(task: asyncio.Task[Deployment]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _deployment(
    model: ModelSettings,
    folder: Path | None,
    encoder: ChatEncoder,
    replicas: Sequence[Replica],
    pii: Detector | None,
) -> Deployment:
    info = replicas[0].link.info
    assert info is not None
    return Deployment(
        model=model.name,
        version=model.version,
        encoder=encoder,
        limits=_limits(model, folder, info, encoder.tokenizer),
        replicas=replicas,
        fingerprint=_fingerprint(model, folder, info),
        engine=model.engine,
        takes_text=info.takes_text,
        continuation=info.continuation,
        task=info.task,
        vectors=info.vectors,
        form=of_templates(encoder.template.sources),
        pii=pii,
    )


def _check_alike(model: ModelSettings, links: Sequence[WorkerLink]) -> None:
    """Several servers of one deployment are asked for the same things. Raises EngineError."""
    kinds = [
        (i.takes_text, i.sampling, i.continuation, i.task, i.vectors, i.takes_grammars, i.tells_logprobs)
        for link in links
        if (i := link.info) is not None
    ]
    for url, kind in zip(model.url[1:], kinds[1:], strict=False):
        if kind != kinds[0]:
            name = model.triton_model or model.name
            raise EngineError(f"{model.id}: url: at {url}, {name} takes or gives something else than at {model.url[0]}")


def _find_folder(model: ModelSettings) -> Path | None:
    """Where the files around the model are; None for the deterministic engine, which has none."""
    if model.engine == "fake":
        return None
    wanted = model_files.GRAPHS if model.engine == "onnx" else model_files.WEIGHTS
    return model_files.find(model.path or model.tokenizer, wanted)


def _load_encoder(model: ModelSettings, folder: Path | None) -> ChatEncoder:
    if folder is None:
        return ChatEncoder(ByteTokenizer(), ChatTemplate.contents_only(model.system_prompt))
    tokenizer = load_tokenizer(model_files.find(model.tokenizer) if model.tokenizer else folder)
    template = ChatTemplate.load(
        folder, tokenizer.special_tokens, model=f"The model {model.id}", system_prompt=model.system_prompt
    )
    return ChatEncoder(tokenizer, template)


def _limits(model: ModelSettings, folder: Path | None, info: EngineInfo, tokenizer: Tokenizer) -> ModelLimits:
    return ModelLimits(
        context=info.max_model_len,
        vocab_size=info.vocab_size or tokenizer.vocab_size,
        max_tokens_default=model.max_tokens_default,
        eos_token_ids=tokenizer.eos_token_ids | (_stop_token_ids(folder) if folder else frozenset()),
        defaults=SamplingDefaults.load(folder).only(info.sampling) if folder else SamplingDefaults(),
        sampling=info.sampling,
        takes_grammars=info.takes_grammars,
        tells_logprobs=info.tells_logprobs,
    )


def _stop_token_ids(folder: Path) -> frozenset[int]:
    """The model's own: generation_config.json's, or config.json's where it is silent. A tokenizer that lies in
    another folder does not know them. Raises TokenizerError."""
    configs = (read_json(folder / name) for name in ("generation_config.json", "config.json"))
    value = next((found for config in configs if (found := config.get("eos_token_id")) is not None), None)
    listed = value if isinstance(value, list) else [value]
    return frozenset(token_id for token_id in listed if isinstance(token_id, int))


def _fingerprint(model: ModelSettings, folder: Path | None, info: EngineInfo) -> str:
    """Changes whenever the same seed might give another answer. What Triton runs is not seen, nor its weights."""
    files = model_files.digest(folder) if folder else ""
    parts = (model.id, model.engine, model.quantize, model.pooling, str(model.options), info.description, files)
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
