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

    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_ENDPOINT
                          `tracing.endpoint`, as OpenTelemetry defines them; what else is read of its variables:
                          `server.settings_otel` and `server.tracing.tracer`

Another PENSTOCK_ variable is refused when it looks like a misspelt one of these, else named in `Settings.warnings`.
Those that Kubernetes sets for a Service called penstock or penstock-… (PENSTOCK_PORT=tcp://… among them) are not ours
and are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from quota.levels import DEFAULT_PLAN, LimitError, Plan
from server.keys import PRESET_FORM, may_be_key
from server.settings_checks import check
from server.settings_layers import PREFIX, Layers, Problem, Variables, key_path, read_toml
from server.settings_layers import SettingsError as SettingsError
from server.settings_models import BUNDLED_FOLDER as BUNDLED_FOLDER
from server.settings_models import MODEL_FLAGS, lay_models
from server.settings_otel import trace_endpoint
from server.settings_sections import (
    BatchSettings,
    CacheSettings,
    Document,
    FileSettings,
    FilterSettings,
    LimitSettings,
    ModelSettings,
    PiiSettings,
    QuotaTable,
    ResponseSettings,
    RoutingSettings,
    ServerSettings,
    TimeoutSettings,
    TracingSettings,
)

SECRET_KEYS = ("admin_key", "api_key", "key_pepper")
SERVER_KEYS = tuple(ServerSettings.model_fields)
VARIABLES = ("CONFIG", *(key.upper() for key in (*SERVER_KEYS, *MODEL_FLAGS, *SECRET_KEYS)))


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
    tracing: TracingSettings
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
        document = Document.model_validate(layers.raw)
        check(document)
        quota = _quota(document.quota)
    except ValidationError as error:
        raise SettingsError(layers.describe(error.errors()[0], Document)) from None
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
    if (endpoint := trace_endpoint(environ)) is not None:
        layers.put(("tracing", "endpoint"), endpoint.url, endpoint.variable)
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


def _quota(table: QuotaTable) -> QuotaSettings:
    """Raises LimitError."""
    plans = {"default": DEFAULT_PLAN} | {name: Plan.parse(name, raw) for name, raw in table.plans.items()}
    return QuotaSettings(plans, table.max_gateways, table.when_redis_is_away, table.audit)


def _settings(document: Document, quota: QuotaSettings, secrets: Secrets, warnings: tuple[str, ...]) -> Settings:
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
        tracing=document.tracing,
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


def _idle_limits(document: Document, quota: QuotaSettings) -> list[str]:
    """Limits on models that are not declared here: perhaps misspelt, perhaps loaded later."""
    known = {model.name for model in document.models} | {model.id for model in document.models}
    return [
        f"{key_path(('quota', 'plans', plan.name, 'models', name))}: no such model is declared"
        for plan in quota.plans.values()
        for name in sorted(plan.models.keys() - known)
    ]
