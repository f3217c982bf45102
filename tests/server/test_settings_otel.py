"""OpenTelemetry's own variables over the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import load
from server.settings_layers import SettingsError

GENERAL = "OTEL_EXPORTER_OTLP_ENDPOINT"
OURS = '[tracing]\nendpoint = "http://ours:4318/v1/traces"\n'


def endpoint(folder: Path, text: str, **environ: str) -> str:
    path = folder / "penstock.toml"
    path.write_text(text)
    return load(path, {}, environ).tracing.endpoint


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "http://ours:4318/v1/traces"),
        ({GENERAL: "http://all:4318"}, "http://all:4318/v1/traces"),
        ({GENERAL: "http://all:4318/"}, "http://all:4318/v1/traces"),
        ({GENERAL: "http://all", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces/x"}, "http://traces/x"),
        ({GENERAL: "http://all", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http://all/v1/traces"),
        ({GENERAL: "http://all", "OTEL_SDK_DISABLED": "true"}, ""),
        ({GENERAL: "http://all", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://ours:4318/v1/traces"),
        ({GENERAL: ""}, "http://ours:4318/v1/traces"),
    ],
)
def test_they_override_the_file(tmp_path: Path, environ: dict[str, str], expected: str) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="penstock[otel] is not installed")
    assert endpoint(tmp_path, OURS, **environ) == expected


def test_nothing_is_traced_without_them(tmp_path: Path) -> None:
    assert endpoint(tmp_path, "") == ""


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({GENERAL: "collector:4317"}, f"{GENERAL}: expected a URL that starts with http:// or https://"),
        (
            {GENERAL: "http://all:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            'OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, got "grpc"',
        ),
    ],
)
def test_what_can_not_be_right_stops_the_start(tmp_path: Path, environ: dict[str, str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        endpoint(tmp_path, "", **environ)
    assert str(caught.value) == line


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'tracing.endpoint: .*pip install "penstock\[otel\]"'):
        endpoint(tmp_path, OURS)
