"""Configuration: the only reader of environment and files.

Flags override `PENSTOCK_*` environment variables, which override the TOML file. What can't be right stops the start
with one line: where it stands, the key, what was expected. An empty environment variable counts as unset.

    PENSTOCK_CONFIG       the file, when --config names none
    PENSTOCK_HOST PENSTOCK_PORT PENSTOCK_GATEWAYS PENSTOCK_DATABASE_URL PENSTOCK_REDIS_URL PENSTOCK_TLS_CERT
    PENSTOCK_TLS_KEY PENSTOCK_CORS_ORIGINS (separated by commas) PENSTOCK_DATA_DIR PENSTOCK_LOG_LEVEL
                          the keys of [server]
    PENSTOCK_ENGINE PENSTOCK_DTYPE PENSTOCK_QUANTIZE PENSTOCK_TRITON_URL (`url`) PENSTOCK_TOKENIZER PENSTOCK_TASK
                          these keys of every model
    PENSTOCK_ADMIN_KEY PENSTOCK_API_KEY PENSTOCK_KEY_PEPPER
                          secrets, which no file holds: any 16 to 512 characters, as `server.keys.may_be_key` says

Another PENSTOCK_ variable is refused when it looks like a misspelt one of these, else named in `Settings.warnings`.
Those that Kubernetes sets for a Service called penstock or penstock-… (PENSTOCK_PORT=tcp://… among them) are not ours
and are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quota.levels import DEFAULT_PLAN, LimitError, Plan
from server.keys import PRESET_FORM, may_be_key
from server.settings_layers import (
    PREFIX,
    Layers,
    Problem,
    Variables,
    at_key,
    key_path,
    read_toml,
    shown,
)
from server.settings_layers import (
    SettingsError as SettingsError,
)
from server.settings_models import BUNDLED_FOLDER as BUNDLED_FOLDER
from server.settings_models import HUB_ID, MODEL_FLAGS, lay_models
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
    TritonVersion,
    Version,
)
from server.text.pii.kinds import Kind

SECRET_KEYS = ("admin_key", "api_key", "key_pepper")


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ServerSettings(_Section):
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


SERVER_KEYS = tuple(ServerSettings.model_fields)
VARIABLES = ("CONFIG", *(key.upper() for key in (*SERVER_KEYS, *MODEL_FLAGS, *SECRET_KEYS)))


class ModelSettings(_Section):
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


class RoutingSettings(_Section):
    aliases: dict[Name, str] = Field(default_factory=dict)  # alias -> name or name@version
    default_versions: dict[str, str] = Field(default_factory=dict)


class FilterSettings(_Section):
    block_input: Texts = ()
    mask_output: Texts = ()
    categories: dict[Category, Texts] = Field(default_factory=dict)  # of /v1/moderations alone


class PiiSettings(_Section):
    enabled: bool = False  # for models that do not say themselves
    kinds: PiiKinds = tuple(Kind)
    patterns: dict[PatternName, Text] = Field(default_factory=dict)  # more kinds, by their names; RE2's syntax


class TimeoutSettings(_Section):
    queue: Seconds = 10
    first_token: Seconds = 60
    between_tokens: Seconds = 30
    total: Seconds = 600
    drain: Seconds = 30
    header: Seconds = 10
    body: Seconds = 30
    write: Seconds = 30  # a stalled reader
    keep_alive: Seconds = 15  # between the comments that keep a quiet stream open


class LimitSettings(_Section):
    body_bytes: Annotated[int, Field(ge=1024)] = 4 * 2**20
    websocket_message_bytes: Annotated[int, Field(ge=1024)] = 2**20


class FileSettings(_Section):
    file_bytes: Annotated[int, Field(ge=1024)] = 100 * 2**20
    account_bytes: Annotated[int, Field(ge=1024)] = 10 * 2**30
    upload_timeout: Seconds = 600  # for a whole upload; `timeouts.body` is for its silence


class CacheSettings(_Section):
    """The response cache. With `store` "redis" its `max_bytes` is for that server to hold to (`maxmemory`)."""

    store: Literal["off", "embedded", "redis"] = "off"
    ttl: Seconds = 3600
    max_bytes: Annotated[int, Field(ge=2**16)] = 2**26  # of the embedded one
    max_entry_bytes: Annotated[int, Field(ge=2**10)] = 2**20
    redis_url: RedisURL = Field(default="", repr=False)  # "": server.redis_url

    @property
    def is_on(self) -> bool:
        return self.store != "off"


class ResponseSettings(_Section):
    keep_days: Annotated[float, Field(gt=0, le=36500)] = 30  # that /v1/responses keeps what it stores


class BatchSettings(_Section):
    concurrent_lines: Annotated[int, Field(ge=1, le=1024)] = 16  # of one batch
    concurrent_batches: Annotated[int, Field(ge=1, le=64)] = 4  # of one account, over all gateways
    line_timeout: Seconds = 3600  # of one attempt at one line


class _QuotaTable(_Section):
    max_gateways: Annotated[int, Field(ge=1)] = 4
    when_redis_is_away: Literal["share", "closed", "open"] = "share"
    audit: bool = False
    plans: dict[str, Any] = Field(default_factory=dict)


class _Document(_Section):
    server: ServerSettings
    models: Annotated[tuple[ModelSettings, ...], Field(strict=False, min_length=1)]
    routing: RoutingSettings = RoutingSettings()
    quota: _QuotaTable = _QuotaTable()
    filter: FilterSettings = FilterSettings()
    pii: PiiSettings = PiiSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    limits: LimitSettings = LimitSettings()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    cache: CacheSettings = CacheSettings()
    responses: ResponseSettings = ResponseSettings()


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    plans: Mapping[str, Plan]  # always has "default"
    max_gateways: int = 4  # a gateway's share of a limit while Redis is away is limit // max_gateways
    when_redis_is_away: str = "share"  # a `quota.degraded.WhenAway`
    audit: bool = False  # whether Redis keeps a log of every step


@dataclass(frozen=True, slots=True)
class Secrets:
    """Set by the environment alone, never printed. None: generated, or kept in the database."""

    admin_key: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    key_pepper: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    server: ServerSettings
    models: tuple[ModelSettings, ...]
    routing: RoutingSettings
    quota: QuotaSettings
    filter: FilterSettings
    pii: PiiSettings
    timeouts: TimeoutSettings
    limits: LimitSettings
    files: FileSettings
    batches: BatchSettings
    cache: CacheSettings
    responses: ResponseSettings
    secrets: Secrets
    warnings: tuple[str, ...] = ()  # lines for the operator


def load(path: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Read everything once. `path` is --config; without it PENSTOCK_CONFIG, without that no file is read.

    `overrides` are the flags by name, None where not given: keys of [server], `models` (the MODEL arguments, which take
    the place of the file's models, and of their aliases), and those of MODEL_FLAGS, which override every model's own.
    Raises SettingsError.
    """
    variables = Variables(environ, VARIABLES)
    path = path or (Path(named) if (named := variables.get("CONFIG")) else None)
    layers = Layers(read_toml(path) if path else {}, str(path or "configuration"))
    warnings = _lay_over(layers, variables, overrides, environ)
    try:
        document = _Document.model_validate(layers.raw)
        _check(document)
        quota = _quota(document.quota)
    except ValidationError as error:
        raise SettingsError(layers.describe(error.errors()[0], _Document)) from None
    except Problem as problem:
        raise SettingsError(f"{layers.place(problem.loc)}: {problem.text}") from None
    except LimitError as error:
        raise SettingsError(f"{layers.label}: {error}") from None
    return _settings(document, quota, _secrets(variables), (*variables.warnings, *warnings))


def _lay_over(
    layers: Layers, variables: Variables, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> list[str]:
    """Returns warnings."""
    for key in SERVER_KEYS:
        if (text := variables.get(key.upper())) is not None:
            layers.put(("server", key), _from_text(key, text), PREFIX + key.upper())
    for key, value in overrides.items():
        if value is not None and key in SERVER_KEYS:
            layers.put(("server", key), value, _flag(key))
    layers.default("server", "data_dir", str(_data_home(environ) / "penstock"))
    return lay_models(layers, variables, overrides)


def _from_text(key: str, text: str) -> object:
    """A variable's value in its key's type; what is not of that type stays text, for validation to refuse."""
    if key in ("port", "gateways") and re.fullmatch(r"-?[0-9]{1,9}", text):
        return int(text)
    return [part.strip() for part in text.split(",")] if key == "cors_origins" else text


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _data_home(environ: Mapping[str, str]) -> Path:
    """https://specifications.freedesktop.org/basedir-spec/latest/"""
    return Path(environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or Path.home(), ".local", "share"))


def _check(document: _Document) -> None:
    """What no section can see alone. Raises Problem."""
    server = document.server
    if server.gateways > 1 and not server.redis_url:
        raise Problem(("server", "gateways"), "more than 1 needs server.redis_url: each would apply the limits alone")
    for key, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(server, key) and not getattr(server, other):
            raise Problem(("server", other), f"required with {key}")
        if getattr(server, key) and not Path(getattr(server, key)).is_file():
            raise Problem(("server", key), "no such file")
    if document.quota.max_gateways < server.gateways:
        raise Problem(("quota", "max_gateways"), f"expected at least server.gateways, which is {server.gateways}")
    if document.quota.audit and not server.redis_url:
        raise Problem(("quota", "audit"), "only the shared ledger keeps a log: it needs server.redis_url")
    _check_cache(document.cache, server)
    for i, model in enumerate(document.models):
        _check_model(document, i, model)
    _check_routing(document)
    _check_pii(document)


def _check_pii(document: _Document) -> None:
    """Patterns are tried at the start, by a package that only they need."""
    if not (document.pii.patterns or document.pii.enabled or any(model.pii for model in document.models)):
        return
    try:
        from server.text.pii.patterns import PatternError, bounded
    except ImportError as error:
        raise Problem(("pii",), str(error)) from None
    for name, pattern in document.pii.patterns.items():
        try:
            bounded(pattern)
        except PatternError as error:
            raise Problem(("pii", "patterns", name), str(error)) from None


def _check_cache(cache: CacheSettings, server: ServerSettings) -> None:
    if cache.store == "redis" and not (cache.redis_url or server.redis_url):
        raise Problem(("cache", "redis_url"), 'required by store = "redis", as there is no server.redis_url')
    if cache.max_entry_bytes > cache.max_bytes:
        raise Problem(("cache", "max_entry_bytes"), f"expected at most cache.max_bytes, which is {cache.max_bytes}")


def _check_model(document: _Document, i: int, model: ModelSettings) -> None:
    if model.id in {earlier.id for earlier in document.models[:i]}:
        raise Problem(("models", i), f"{model.id} is declared twice")
    for key in ("path", "tokenizer"):
        place = getattr(model, key)
        if place and not Path(place).exists() and not re.fullmatch(HUB_ID, place):
            raise Problem(("models", i, key), f"no such folder, and no Hugging Face id: {shown(place)}")


def _check_routing(document: _Document) -> None:
    names = {model.name for model in document.models}
    ids = {model.id for model in document.models}
    for alias, target in document.routing.aliases.items():
        if alias in names:
            raise Problem(("routing", "aliases", alias), "a model has this name")
        if target not in names | ids:
            raise Problem(("routing", "aliases", alias), f"no such model: {shown(target)}")
    for name, version in document.routing.default_versions.items():
        if f"{name}@{version}" not in ids:
            raise Problem(
                ("routing", "default_versions", name), f"no such model and version: {shown(f'{name}@{version}')}"
            )


def _quota(table: _QuotaTable) -> QuotaSettings:
    """Raises LimitError."""
    plans = {"default": DEFAULT_PLAN} | {name: Plan.parse(name, raw) for name, raw in table.plans.items()}
    return QuotaSettings(plans, table.max_gateways, table.when_redis_is_away, table.audit)


def _settings(document: _Document, quota: QuotaSettings, secrets: Secrets, warnings: tuple[str, ...]) -> Settings:
    return Settings(
        server=document.server,
        models=document.models,
        routing=document.routing,
        quota=quota,
        filter=document.filter,
        pii=document.pii,
        timeouts=document.timeouts,
        limits=document.limits,
        files=document.files,
        batches=document.batches,
        cache=document.cache,
        responses=document.responses,
        secrets=secrets,
        warnings=(*warnings, *_idle_limits(document, quota)),
    )


def _secrets(variables: Variables) -> Secrets:
    values = {key: variables.get(key.upper()) for key in SECRET_KEYS}
    for key, value in values.items():
        if value is not None and not may_be_key(value):
            raise SettingsError(f"{PREFIX}{key.upper()}: {PRESET_FORM}")
    if values["admin_key"] is not None and values["admin_key"] == values["api_key"]:
        raise SettingsError(f"{PREFIX}ADMIN_KEY: expected another key than {PREFIX}API_KEY")
    return Secrets(**values)


def _idle_limits(document: _Document, quota: QuotaSettings) -> list[str]:
    """Limits on models that are not declared here: perhaps misspelt, perhaps loaded later."""
    known = {model.name for model in document.models} | {model.id for model in document.models}
    return [
        f"{key_path(('quota', 'plans', plan.name, 'models', name))}: no such model is declared"
        for plan in quota.plans.values()
        for name in sorted(plan.models.keys() - known)
    ]
