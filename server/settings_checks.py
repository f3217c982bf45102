"""What sections of the configuration must be to each other."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from server.settings_layers import Problem, shown
from server.settings_models import HUB_ID
from server.settings_sections import CacheSettings, Document, ModelSettings, ServerSettings

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def check(document: Document) -> None:
    """What no section can see alone, but for quotas. Raises Problem."""
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
    if document.tracing.endpoint and not _is_installed(EXPORTER):
        message = 'needs OpenTelemetry: install it with pip install "penstock[otel]"'
        raise Problem(("tracing", "endpoint"), message)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _check_pii(document: Document) -> None:
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


def _check_model(document: Document, i: int, model: ModelSettings) -> None:
    if model.id in {earlier.id for earlier in document.models[:i]}:
        raise Problem(("models", i), f"{model.id} is declared twice")
    for key in ("path", "tokenizer"):
        place = getattr(model, key)
        if place and not Path(place).exists() and not re.fullmatch(HUB_ID, place):
            raise Problem(("models", i, key), f"no such folder, and no Hugging Face id: {shown(place)}")


def _check_routing(document: Document) -> None:
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
