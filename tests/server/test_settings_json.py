"""Settings that are handed to another process arrive as they were."""

from __future__ import annotations

from pathlib import Path

from server import settings_json
from server.settings import load

CONFIG = """
[server]
redis_url = "redis://:password@localhost"
gateways = 3
cors_origins = ["https://a.example"]
[[models]]
name = "big"
engine = "triton"
url = "127.0.0.1:8001"
tokenizer = "org/name"
[[models]]
name = "m"
version = "2"
engine = "fake"
options = { delay_ms = 2, nested = { list = [1, 2.5, "x"] } }
[routing]
aliases = { other = "m@2" }
default_versions = { m = "2" }
[quota]
max_gateways = 7
when_redis_is_away = "closed"
[quota.plans.default]
account = { rpm = 600, tpm = 90000, shadow = ["tpm"] }
key = { concurrent = 0 }
models = { m = { tokens_per_day = 10 }, "unknown@1" = { rpm = 1 } }
features = { websocket = { concurrent = 16 } }
[quota.plans.free]
[filter]
block_input = ["ü"]
[timeouts]
drain = 0.5
"""
ENVIRON = {"HOME": "/home/someone", "PENSTOCK_ADMIN_KEY": "x" * 16, "PENSTOCK_KEY_PEPPER": "y" * 16}


def test_they_arrive_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(CONFIG, encoding="utf-8")
    settings = load(path, {"data_dir": "~/bytes \udcff"}, ENVIRON)
    assert settings.warnings
    assert settings_json.load(settings_json.dump(settings)) == settings


def test_the_defaults_too() -> None:
    settings = load(None, {}, {"HOME": "/home/someone"})
    assert settings_json.load(settings_json.dump(settings)) == settings
