"""What OpenTelemetry's own variables say of where traces go.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and .../protocol/exporter/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from server.settings_layers import SettingsError, shown

GENERAL, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Endpoint(NamedTuple):
    url: str  # "": nothing is traced
    variable: str  # that says so


def trace_endpoint(environ: Mapping[str, str]) -> Endpoint | None:
    """None where they say nothing. Raises SettingsError for a protocol that is not OTLP over HTTP."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Endpoint("", "OTEL_SDK_DISABLED")
    if environ.get("OTEL_TRACES_EXPORTER", "") == "none":
        return Endpoint("", "OTEL_TRACES_EXPORTER")
    if url := environ.get(TRACES):
        found = Endpoint(url, TRACES)
    elif url := environ.get(GENERAL):
        found = Endpoint(url.rstrip("/") + "/v1/traces", GENERAL)
    else:
        return None
    _check_protocol(environ)
    return found


def _check_protocol(environ: Mapping[str, str]) -> None:
    variable = next((name for name in PROTOCOLS if environ.get(name)), None)
    if variable is not None and environ[variable] != "http/protobuf":
        raise SettingsError(f"{variable}: expected http/protobuf, got {shown(environ[variable])}")
