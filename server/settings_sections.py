"""The sections of the configuration file, each checked by itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.settings_layers import at_key
from server.settings_types import (
    Category,
    DatabaseURL,
    DataDir,
    HostPorts,
    Name,
    PatternName,
    PiiKinds,
    RedisURL,
    Seconds,
    Text,
    Texts,
    TraceURL,
    TritonVersion,
    Version,
)
from server.text.pii.kinds import Kind


class Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ServerSettings(Section):
    host: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000  # 0: one that is free
    gateways: Annotated[int, Field(ge=1, le=256)] = 1
    database_url: DatabaseURL = Field(default="", repr=False)  # it may hold a password, and so may the next
    redis_url: RedisURL = Field(default="", repr=False)
    tls_cert: str = ""
    tls_key: str = ""
    cors_origins: Texts = ()
    data_dir: DataDir
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class ModelSettings(Section):
    """One version of one model. `path` and `tokenizer` are a local path or a Hugging Face id."""

    name: Name
    version: Version = "1"
    engine: Literal["torch", "onnx", "triton", "fake"] = "torch"
    path: str = ""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["none", "int8"] = "none"
    max_model_len: Annotated[int, Field(ge=0)] = 0  # 0: the model's own
    max_tokens_default: Annotated[int, Field(ge=1)] = 256
    max_num_seqs: Annotated[int, Field(ge=1)] = 64
    max_queue: Annotated[int, Field(ge=1)] = 1024
    system_prompt: str = ""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    url: HostPorts = ()  # of several, each is a replica
    triton_model: str = ""  # "": the name
    triton_version: TritonVersion = ""  # "": Triton's policy
    tokenizer: str = ""
    task: Literal["auto", "generate", "embed", "score"] = "auto"  # auto: as the model's files say
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"  # of token vectors; auto: as the files say, else the mean
    matryoshka: bool = False  # requests may ask for fewer dimensions, whatever the files say
    pii: bool | None = None  # whether personal data is masked; None: as [pii] says
    options: dict[str, Any] = Field(default_factory=dict)  # of this engine kind alone

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def num_replicas(self) -> int:
        return max(self.replicas, len(self.url))

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        needed = {"torch": ("path",), "onnx": ("path",), "triton": ("url", "tokenizer"), "fake": ()}[self.engine]
        for key in needed:
            if not getattr(self, key):
                raise at_key(key, f'required by engine = "{self.engine}"')
        for key in _MEANINGLESS[self.engine]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise at_key(key, f'means nothing to engine = "{self.engine}"')
        if len(self.url) > 1 and self.replicas not in (1, len(self.url)):
            raise at_key("replicas", f"each url is a replica: expected {len(self.url)}, or nothing")
        return self


_TRITON_KEYS = ("url", "triton_model", "triton_version")
_MEANINGLESS = {
    "torch": _TRITON_KEYS,
    "onnx": _TRITON_KEYS,
    "triton": ("dtype", "quantize", "task", "pooling", "matryoshka"),
    "fake": (*_TRITON_KEYS, "path", "tokenizer", "dtype", "quantize", "pooling"),
}


class RoutingSettings(Section):
    aliases: dict[Name, str] = Field(default_factory=dict)  # alias -> name or name@version
    default_versions: dict[str, str] = Field(default_factory=dict)


class FilterSettings(Section):
    block_input: Texts = ()
    mask_output: Texts = ()
    categories: dict[Category, Texts] = Field(default_factory=dict)  # of /v1/moderations alone


class PiiSettings(Section):
    enabled: bool = False  # for models that do not say themselves
    kinds: PiiKinds = tuple(Kind)
    patterns: dict[PatternName, Text] = Field(default_factory=dict)  # more kinds, by their names; RE2's syntax


class TimeoutSettings(Section):
    queue: Seconds = 10
    first_token: Seconds = 60
    between_tokens: Seconds = 30
    step: Seconds = 120  # of an engine; one that takes longer hangs, and its worker is started again
    worker_silence: Annotated[float, Field(ge=3, le=86400)] = 10  # a worker reports every second, or else hangs
    total: Seconds = 600
    drain: Seconds = 30
    header: Seconds = 10
    body: Seconds = 30
    write: Seconds = 30  # a stalled reader
    keep_alive: Seconds = 15  # between the comments that keep a quiet stream open


class LimitSettings(Section):
    body_bytes: Annotated[int, Field(ge=1024)] = 4 * 2**20
    websocket_message_bytes: Annotated[int, Field(ge=1024)] = 2**20
    connections: Annotated[int, Field(ge=1)] = 2**14  # of one gateway; fewer where it may not open so many files


class FileSettings(Section):
    file_bytes: Annotated[int, Field(ge=1024)] = 100 * 2**20
    account_bytes: Annotated[int, Field(ge=1024)] = 10 * 2**30
    upload_timeout: Seconds = 600  # for a whole upload; `timeouts.body` is for its silence


class CacheSettings(Section):
    """The response cache. With `store` "redis" its `max_bytes` is for that server to hold to (`maxmemory`)."""

    store: Literal["off", "embedded", "redis"] = "off"
    ttl: Seconds = 3600
    max_bytes: Annotated[int, Field(ge=2**16)] = 2**26  # of the embedded one
    max_entry_bytes: Annotated[int, Field(ge=2**10)] = 2**20
    redis_url: RedisURL = Field(default="", repr=False)  # "": server.redis_url

    @property
    def is_on(self) -> bool:
        return self.store != "off"


class TracingSettings(Section):
    endpoint: TraceURL = ""  # what takes OTLP's traces over HTTP; "": nothing is traced


class ResponseSettings(Section):
    keep_days: Annotated[float, Field(gt=0, le=36500)] = 30  # that /v1/responses keeps what it stores


class BatchSettings(Section):
    concurrent_lines: Annotated[int, Field(ge=1, le=1024)] = 16  # of one batch
    concurrent_batches: Annotated[int, Field(ge=1, le=64)] = 4  # of one account, over all gateways
    line_timeout: Seconds = 3600  # of one attempt at one line


class QuotaTable(Section):
    max_gateways: Annotated[int, Field(ge=1)] = 4
    when_redis_is_away: Literal["share", "closed", "open"] = "share"
    audit: bool = False
    plans: dict[str, Any] = Field(default_factory=dict)


class Document(Section):
    server: ServerSettings
    models: Annotated[tuple[ModelSettings, ...], Field(strict=False, min_length=1)]
    routing: RoutingSettings = RoutingSettings()
    quota: QuotaTable = QuotaTable()
    filter: FilterSettings = FilterSettings()
    pii: PiiSettings = PiiSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    limits: LimitSettings = LimitSettings()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    cache: CacheSettings = CacheSettings()
    tracing: TracingSettings = TracingSettings()
    responses: ResponseSettings = ResponseSettings()
