"""server/settings.py: precedence, defaults, and the one line that a mistake gets."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as config
from hypothesis import strategies as st

from quota.levels import DEFAULT_PLAN, FEATURES, Dimension, Limits
from server import model_files
from server import settings as module
from server.keys import PRESET_FORM
from server.settings import Settings, SettingsError, load
from server.settings_models import BUNDLED_ALIASES, models_from_arguments
from server.text.content_filter import CATEGORIES

ROOT = Path(module.__file__).parent.parent
HOME = {"HOME": "/home/someone"}


def load_text(text: str, folder: Path, **overrides: object) -> Settings:
    path = folder / "p.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides, HOME)


def error_of(text: str, folder: Path, **overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_text(text, folder, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


def error_from(environ: dict[str, str], **overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load(None, overrides, HOME | environ)
    return str(caught.value)


FAKE = '[[models]]\nname = "m"\nengine = "fake"\n'
TRITON = '[[models]]\nname = "m"\nengine = "triton"\ntokenizer = "t/t"\n'


def test_nothing_given_serves_the_bundled_model() -> None:
    settings = load(None, {}, HOME)
    (model,) = settings.models
    assert (model.id, model.engine, model.max_model_len) == ("tiny-chat@1", "torch", 1024)
    assert Path(model.path) == ROOT / "models" / "tiny-chat"
    assert settings.routing.aliases == dict.fromkeys(BUNDLED_ALIASES, "tiny-chat")
    assert settings.quota.plans == {"default": DEFAULT_PLAN}
    assert (settings.server.host, settings.server.port, settings.server.gateways) == ("127.0.0.1", 8000, 1)
    assert (settings.server.database_url, settings.server.data_dir) == ("", Path("/home/someone/.local/share/penstock"))
    assert settings.warnings == ()


def test_the_default_timeouts_and_limits() -> None:
    settings = load(None, {}, HOME)
    assert settings.timeouts.model_dump() == {
        "queue": 10, "first_token": 60, "between_tokens": 30, "total": 600, "drain": 30,
        "header": 10, "body": 30, "write": 30, "keep_alive": 15,
        "step": 120, "worker_silence": 10,
    }  # fmt: skip
    assert settings.limits.model_dump() == {
        "body_bytes": 4 * 2**20, "websocket_message_bytes": 2**20, "connections": 2**14
    }  # fmt: skip


def test_flags_override_the_environment_which_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f'[server]\nhost = "file"\nport = 1\nlog_level = "debug"\n{FAKE}')
    environ = HOME | {"PENSTOCK_CONFIG": str(path), "PENSTOCK_HOST": "variable", "PENSTOCK_PORT": "2"}
    server = load(None, {"port": 3, "host": None}, environ).server
    assert (server.host, server.port, server.log_level) == ("variable", 3, "debug")


def test_the_flag_names_the_file_before_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(FAKE)
    assert load(path, {}, HOME | {"PENSTOCK_CONFIG": "elsewhere.toml"}).models[0].name == "m"


def test_every_key_of_server_has_its_variable() -> None:
    environ = {
        "PENSTOCK_GATEWAYS": "2",
        "PENSTOCK_DATABASE_URL": "postgresql+psycopg://u:p@h/d",
        "PENSTOCK_REDIS_URL": "redis://h",
        "PENSTOCK_CORS_ORIGINS": "https://a, https://b",
        "PENSTOCK_DATA_DIR": "~/state",
        "PENSTOCK_LOG_LEVEL": "warning",
        "PENSTOCK_HOST": "",  # as unset
    }
    server = load(None, {}, environ).server
    assert (server.gateways, server.redis_url, server.log_level) == (2, "redis://h", "warning")
    assert server.database_url == "postgresql+psycopg://u:p@h/d"
    assert server.cors_origins == ("https://a", "https://b")
    assert server.data_dir == Path.home() / "state"
    assert server.host == "127.0.0.1"


def test_the_data_folder_follows_xdg() -> None:
    assert load(None, {}, {"XDG_DATA_HOME": "/data"}).server.data_dir == Path("/data/penstock")


def test_secrets_come_from_the_environment_and_are_not_shown() -> None:
    secret = "s3cret-" + "x" * 16
    settings = load(None, {}, HOME | {"PENSTOCK_API_KEY": secret, "PENSTOCK_KEY_PEPPER": secret})
    assert (settings.secrets.api_key, settings.secrets.admin_key) == (secret, None)
    assert secret not in repr(settings)


@pytest.mark.parametrize("text", ["sk-pen-my-own-key-123456", "words with spaces", "schlüssel-mit-umlaut"])
def test_a_preset_key_has_any_form(text: str) -> None:
    assert load(None, {}, HOME | {"PENSTOCK_API_KEY": text}).secrets.api_key == text


def test_urls_with_passwords_are_not_shown() -> None:
    urls = {"PENSTOCK_REDIS_URL": "redis://:hunter2@h", "PENSTOCK_DATABASE_URL": "postgresql+psycopg://u:hunter2@h/d"}
    assert "hunter2" not in repr(load(None, {}, HOME | urls))
    assert "hunter2" not in error_from({"PENSTOCK_REDIS_URL": "http://:hunter2@h"})


def test_what_kubernetes_sets_is_passed_over() -> None:
    environ = {
        "PENSTOCK_PORT": "tcp://10.0.0.1:8000",
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT": "8000",
        "PENSTOCK_SERVICE_PORT_HTTP": "8000",
        "PENSTOCK_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PENSTOCK_PORT_8000_TCP_ADDR": "10.0.0.1",
        "PENSTOCK_REDIS_SERVICE_HOST": "10.0.0.2",
        "PENSTOCK_REDIS_PORT": "tcp://10.0.0.2:6379",
    }
    settings = load(None, {}, HOME | environ)
    assert settings.server.port == 8000
    assert settings.warnings == ()


def test_an_unknown_variable_is_named_and_a_misspelt_one_is_refused() -> None:
    settings = load(None, {}, HOME | {"PENSTOCK_BASE_URL": "http://x"})
    assert settings.warnings == ("PENSTOCK_BASE_URL: unknown variable, not used",)
    message = error_from({"PENSTOCK_API_KEYS": "x"})
    assert message == "PENSTOCK_API_KEYS: unknown variable, did you mean PENSTOCK_API_KEY?"


def test_models_from_arguments(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    arguments = [str(folder), "Qwen/Qwen3-0.6B", f"{tmp_path}/my model/../my model/"]
    tables = models_from_arguments(arguments)
    assert [table["name"] for table in tables] == ["my-model", "Qwen3-0.6B", "my-model"]
    assert tables[1] == {"name": "Qwen3-0.6B", "path": "Qwen/Qwen3-0.6B", "version": "1"}


def test_models_of_a_triton(tmp_path: Path) -> None:
    flags = {"engine": "triton", "triton_url": "[::1]:8001", "models": ["org/ensemble"]}
    (model,) = load(None, flags, HOME).models
    assert (model.id, model.url, model.tokenizer, model.path) == ("ensemble@1", ("[::1]:8001",), "org/ensemble", "")
    (model,) = load(None, flags | {"tokenizer": str(tmp_path)}, HOME).models
    assert (model.name, model.tokenizer, model.num_replicas) == ("ensemble", str(tmp_path), 1)
    (model,) = load(None, flags | {"triton_url": "h:1, [::1]:2"}, HOME).models
    assert (model.url, model.num_replicas) == (("h:1", "[::1]:2"), 2)


def test_arguments_take_the_place_of_the_file_s_models(tmp_path: Path) -> None:
    settings = load_text(FAKE, tmp_path, models=["Qwen/Qwen3-0.6B"], dtype="bfloat16", quantize="int8")
    (model,) = settings.models
    assert (model.id, model.path, model.dtype, model.quantize) == (
        "Qwen3-0.6B@1", "Qwen/Qwen3-0.6B", "bfloat16", "int8",
    )  # fmt: skip
    assert model.max_model_len == 0
    assert settings.routing.aliases == {}


def test_a_model_flag_overrides_every_model_of_the_file(tmp_path: Path) -> None:
    text = '[[models]]\nname = "a"\npath = "o/a"\n[[models]]\nname = "b"\npath = "o/b"\ndtype = "float32"'
    assert [m.dtype for m in load_text(text, tmp_path, dtype="bfloat16").models] == ["bfloat16"] * 2


def test_variables_override_every_model_of_the_file_and_flags_override_them(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[models]]\nname = "a"\npath = "o/a"\n[[models]]\nname = "b"\npath = "o/b"\ndtype = "float32"')
    environ = HOME | {"PENSTOCK_DTYPE": "bfloat16", "PENSTOCK_QUANTIZE": "int8", "PENSTOCK_ENGINE": "onnx"}
    models = load(path, {"quantize": "none"}, environ).models
    assert [(m.engine, m.dtype, m.quantize) for m in models] == [("onnx", "bfloat16", "none")] * 2


@pytest.mark.parametrize(("flags", "environ"), [({"engine": "fake"}, {}), ({}, {"PENSTOCK_ENGINE": "fake"})])
def test_the_bundled_model_s_name_with_the_deterministic_engine(
    flags: dict[str, object], environ: dict[str, str]
) -> None:
    settings = load(None, flags, HOME | environ)
    (model,) = settings.models
    assert (model.id, model.engine, model.path, model.dtype, model.max_model_len) == (
        "tiny-chat@1", "fake", "", "auto", 0,
    )  # fmt: skip
    assert set(settings.routing.aliases) == set(BUNDLED_ALIASES)


def test_arguments_take_the_aliases_of_the_file_s_models_with_them(tmp_path: Path) -> None:
    text = f"""
{FAKE}
[[models]]
name = "kept"
path = "o/kept"
[routing]
aliases = {{ "gpt-4" = "m", old = "m@1", stays = "kept", stays-too = "kept@1" }}
default_versions = {{ m = "1", kept = "1" }}
"""
    settings = load_text(text, tmp_path, models=["o/kept"])
    assert settings.routing.aliases == {"stays": "kept", "stays-too": "kept@1"}
    assert settings.routing.default_versions == {"kept": "1"}
    assert settings.warnings == (
        'routing.aliases.gpt-4: not used, MODEL replaces "m"',
        'routing.aliases.old: not used, MODEL replaces "m@1"',
        'routing.default_versions.m: not used, MODEL replaces "m@1"',
    )


def test_an_alias_of_the_bundled_model_goes_away_with_it(tmp_path: Path) -> None:
    text = '[routing]\naliases = { demo = "tiny-chat" }'
    assert load_text(text, tmp_path).routing.aliases == {"demo": "tiny-chat"}
    assert load_text(text, tmp_path, models=["o/m"]).routing.aliases == {}
    wrong = error_of('[routing]\naliases = { demo = "tiny-chad" }', tmp_path, models=["o/m"])
    assert wrong == 'p.toml: routing.aliases.demo: no such model: "tiny-chad"'


@pytest.mark.parametrize("place", ["gpt2", "openai-community/gpt2", "Qwen/Qwen2.5-0.5B"])
def test_ids_of_hugging_face(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule of the settings is that of the download."""
    monkeypatch.setattr(model_files, "snapshot_download", lambda name, **_: f"/fetched/{name}")
    assert load(None, {"models": [place]}, HOME).models[0].path == place
    assert model_files.find(place) == Path("/fetched", place)


def test_versions_and_aliases(tmp_path: Path) -> None:
    text = f"""
{FAKE}version = "1"
{FAKE}version = "2"
[routing]
aliases = {{ "gpt-4" = "m", old = "m@1" }}
default_versions = {{ m = "1" }}
[quota.plans.default]
account = {{ rpm = 5 }}
models = {{ "m@1" = {{ rpm = 2 }}, nobody = {{ rpm = 2 }} }}
[quota.plans.free]
"""
    settings = load_text(text, tmp_path)
    assert [model.id for model in settings.models] == ["m@1", "m@2"]
    assert settings.quota.plans["default"].account == Limits(rpm=5)
    assert settings.quota.plans["free"].layers("k", "m", "1", ()) == ()
    assert settings.warnings == ("quota.plans.default.models.nobody: no such model is declared",)


def test_the_example_is_valid() -> None:
    settings = load(ROOT / "penstock.example.toml", {}, HOME)
    assert [model.id for model in settings.models] == ["tiny-chat@1"]
    assert settings.quota.plans["default"].account.tokens_per_day == 5_000_000
    assert settings.warnings == ()


def test_a_flag_says_what_models_are_for(tmp_path: Path) -> None:
    (model,) = load_text(FAKE, tmp_path, models=["a/m"], engine="torch", task="embed").models
    assert (model.task, model.pooling, model.matryoshka) == ("embed", "auto", False)
    assert error_of(FAKE, tmp_path, engine="triton", task="embed", triton_url="h:1", tokenizer="a/m").endswith(
        '--task: means nothing to engine = "triton"'
    )


def test_the_example_shows_every_key() -> None:
    text = (ROOT / "penstock.example.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text.replace("# data_dir", "data_dir"))
    assert set(table["server"]) == set(module.SERVER_KEYS)
    assert set(table["timeouts"]) == set(module.TimeoutSettings.model_fields)
    assert set(table["limits"]) == set(module.LimitSettings.model_fields)
    assert set(table["pii"]) == set(module.PiiSettings.model_fields)
    assert set(table["pii"]["kinds"]) == set(module.PiiSettings().kinds)
    triton = {"url", "triton_model", "triton_version", "tokenizer"}
    assert set(table["models"][0]) | triton == set(module.ModelSettings.model_fields)


def test_the_example_s_other_engines_are_valid_too(tmp_path: Path) -> None:
    text = (ROOT / "penstock.example.toml").read_text(encoding="utf-8")
    tables = text[text.index("# [[models]]") : text.index("[routing]")]
    models = "\n".join(
        line.removeprefix("# ") for line in tables.splitlines() if re.match("# ([a-z_]+ =|\\[\\[)", line)
    )
    assert [m.engine for m in load_text(re.sub('"path/(or|to)/', '"a/', models), tmp_path).models] == [
        "torch", "torch", "onnx", "triton", "fake",
    ]  # fmt: skip


RPN = "quota.plans.default.account.rpn: unknown limit, expected one of " + ", ".join(Dimension)

FILE_ERRORS = [
    ("port = ", "not valid TOML: Invalid value (at end of document)"),
    ("[server]\nport = 1\nport = 2\n", "not valid TOML: Cannot overwrite a value (at line 3, column 9)"),
    ('[pii]\nkinds = ["mail"]', 'pii.kinds[0]: expected one of api_key, email, iban, ip, card, phone, got "mail"'),
    (
        '[pii.patterns]\nemail = "x"',
        'pii.patterns.email: expected a name of its own, in small letters, digits and _, got "email"',
    ),
    (
        '[pii.patterns]\nstaff = "EMP-[0-9]+"',
        "pii.patterns.staff: expected bounded repetition: {0,64} in the place of * and {1,64} in that of +",
    ),
    ('[pii.patterns]\nstaff = "("', "pii.patterns.staff: not a pattern of RE2: missing ): ("),
    ("[serer]", 'serer: unknown key, did you mean "server"?'),
    ("[server]\nprot = 1", 'server.prot: unknown key, did you mean "port"?'),
    (
        "[keys]",
        "keys: unknown key, expected one of server, models, routing, quota, filter, pii, timeouts, limits, files, "
        "batches, cache, tracing, responses",
    ),
    ('[server]\nport = "80"', 'server.port: expected a valid integer, got "80"'),
    ("[server]\nport = true", "server.port: expected a valid integer, got true"),
    ("[server]\nport = 70000", "server.port: expected less than or equal to 65535, got 70000"),
    ("[server]\nhost = 1", "server.host: expected a valid string, got 1"),
    ('[server]\nlog_level = "loud"', "server.log_level: expected 'debug', 'info', 'warning' or 'error', got \"loud\""),
    ('[server]\ncors_origins = "*"', 'server.cors_origins: expected a valid list, got "*"'),
    ("[server]\ncors_origins = [1]", "server.cors_origins[0]: expected a valid string, got 1"),
    (
        "[server]\ngateways = 2",
        "server.gateways: more than 1 needs server.redis_url: each would apply the limits alone",
    ),
    (
        '[server]\nredis_url = "localhost"',
        "server.redis_url: expected a URL that starts with redis:// or rediss:// or unix://",
    ),
    ('[server]\ntls_cert = "none.pem"', "server.tls_key: required with tls_cert"),
    ('[server]\ntls_cert = "none.pem"\ntls_key = "none.key"', "server.tls_cert: no such file"),
    ("server = 1", "server: expected a valid table, got 1"),
    ("models = []", "models: expected at least 1 item, got []"),
    ("models = 1", "models: expected a valid list, got 1"),
    ('[[models]]\npath = "x"', "models[0].name: required"),
    ('[[models]]\nname = "m"', 'models[0].path: required by engine = "torch"'),
    ('[[models]]\nname = "m"\nengine = "triton"', 'models[0].url: required by engine = "triton"'),
    ('[[models]]\nname = "m"\nengine = "triton"\nurl = "h:1"', 'models[0].tokenizer: required by engine = "triton"'),
    (
        '[[models]]\nname = "m"\nengine = "triton"\nurl = "h:1"\ntokenizer = "t"\ntriton_version = "latest"',
        'models[0].triton_version: expected one of Triton\'s own, an integer such as "1", got "latest"',
    ),
    (FAKE + 'url = "h:1"', 'models[0].url: means nothing to engine = "fake"'),
    (TRITON + 'url = "h"', 'models[0].url: expected HOST:PORT, got "h"'),
    (TRITON + 'url = ["h:1", "h:2:3"]', 'models[0].url: expected HOST:PORT, got "h:2:3"'),
    (TRITON + 'url = ["h:1", ""]', 'models[0].url: expected HOST:PORT, got ""'),
    (TRITON + "url = 8001", "models[0].url: expected a valid list, got 8001"),
    (
        TRITON + 'url = ["h:1", "h:2"]\nreplicas = 3',
        "models[0].replicas: each url is a replica: expected 2, or nothing",
    ),
    (FAKE + 'path = "o/m"', 'models[0].path: means nothing to engine = "fake"'),
    (FAKE + 'tokenizer = "o/m"', 'models[0].tokenizer: means nothing to engine = "fake"'),
    (FAKE + 'quantize = "int8"', 'models[0].quantize: means nothing to engine = "fake"'),
    (FAKE + 'dtype = "float32"', 'models[0].dtype: means nothing to engine = "fake"'),
    (FAKE + 'pooling = "mean"', 'models[0].pooling: means nothing to engine = "fake"'),
    (FAKE + 'task = "chat"', "models[0].task: expected 'auto', 'generate', 'embed' or 'score', got \"chat\""),
    (
        FAKE + '[filter]\ncategories = { rude = ["x"] }',
        f'filter.categories.rude: expected one of {", ".join(CATEGORIES)}, got "rude"',
    ),
    (
        '[[models]]\nname = "m"\nengine = "cuda"',
        "models[0].engine: expected 'torch', 'onnx', 'triton' or 'fake', got \"cuda\"",
    ),
    ('[[models]]\nname = "m@1"\nengine = "fake"', 'models[0].name: expected letters, digits and . _ - /, got "m@1"'),
    (FAKE + FAKE, "models[1]: m@1 is declared twice"),
    (FAKE + "max_seqs = 1", 'models[0].max_seqs: unknown key, did you mean "max_num_seqs"?'),
    (FAKE + "max_num_seqs = 0", "models[0].max_num_seqs: expected greater than or equal to 1, got 0"),
    (
        '[[models]]\nname = "m"\npath = "./none/here"',
        'models[0].path: no such folder, and no Hugging Face id: "./none/here"',
    ),
    (
        FAKE + '[routing.aliases]\n"gpt 4" = "m"',
        'routing.aliases."gpt 4": expected letters, digits and . _ - /, got "gpt 4"',
    ),
    (FAKE + '[routing.aliases]\n"gpt-4" = "n"', 'routing.aliases.gpt-4: no such model: "n"'),
    (FAKE + '[routing.aliases]\nm = "m"', "routing.aliases.m: a model has this name"),
    (FAKE + '[routing.default_versions]\nm = "2"', 'routing.default_versions.m: no such model and version: "m@2"'),
    (
        '[quota]\nwhen_redis_is_away = "shut"',
        "quota.when_redis_is_away: expected 'share', 'closed' or 'open', got \"shut\"",
    ),
    ("[quota]\nmax_gateways = 0", "quota.max_gateways: expected greater than or equal to 1, got 0"),
    ("[quota]\naudit = true", "quota.audit: only the shared ledger keeps a log: it needs server.redis_url"),
    (
        '[server]\ngateways = 5\nredis_url = "redis://h"\n[quota]\nmax_gateways = 4',
        "quota.max_gateways: expected at least server.gateways, which is 5",
    ),
    ("[quota.plans.default]\naccount = { rpn = 1 }", RPN),
    ("[quota.plans.default]\nkey = { rpm = -1 }", "quota.plans.default.key.rpm: expected an integer >= 0, got -1"),
    (
        '[quota.plans.default.models]\n"m@1" = { tpm = 1 }',
        'quota.plans.default.models."m@1".tpm: expected 0 (nothing is admitted) or at least 2,'
        " what the smallest request may cost, got 1",
    ),
    (
        "[quota.plans.free.features]\njuggling = { rpm = 1 }",
        "quota.plans.free.features.juggling: unknown feature, expected one of " + ", ".join(sorted(FEATURES)),
    ),
    (
        '[quota.plans.free]\nkey = { rpm = 1, shadow = ["tpm"] }',
        'quota.plans.free.key.shadow: "tpm" is no limit of quota.plans.free.key',
    ),
    ("[timeouts]\nqueue = 0", "timeouts.queue: expected greater than 0, got 0"),
    ("[timeouts]\nqueue = nan", "timeouts.queue: expected a finite number, got NaN"),
    ("[cache]\nstore = 'disk'", "cache.store: expected 'off', 'embedded' or 'redis', got \"disk\""),
    (
        '[cache]\nstore = "redis"',
        'cache.redis_url: required by store = "redis", as there is no server.redis_url',
    ),
    (
        "[cache]\nmax_bytes = 65536\nmax_entry_bytes = 65537",
        "cache.max_entry_bytes: expected at most cache.max_bytes, which is 65536",
    ),
    ('[filter]\nblock_input = [""]', 'filter.block_input[0]: expected at least 1 character, got ""'),
]


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS, ids=range(len(FILE_ERRORS)))
def test_a_bad_file_gets_one_line(text: str, message: str, tmp_path: Path) -> None:
    assert error_of(text, tmp_path) == f"p.toml: {message}"


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: can't be read: No such file or directory$"):
        load(tmp_path / "none.toml", {}, HOME)
    (tmp_path / "p.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"p\.toml: expected a TOML file in UTF-8$"):
        load(tmp_path / "p.toml", {}, HOME)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PENSTOCK_PORT": "http"}, 'PENSTOCK_PORT: expected a valid integer, got "http"'),
        ({"PENSTOCK_PORT": "-1"}, "PENSTOCK_PORT: expected greater than or equal to 0, got -1"),
        (
            {"PENSTOCK_LOG_LEVEL": "x"},
            """PENSTOCK_LOG_LEVEL: expected 'debug', 'info', 'warning' or 'error', got "x\"""",
        ),
        ({"PENSTOCK_CONFIG": "no.toml"}, "no.toml: can't be read: No such file or directory"),
        ({"PENSTOCK_API_KEY": "short"}, f"PENSTOCK_API_KEY: {PRESET_FORM}"),
        ({"PENSTOCK_ADMIN_KEY": " " + "x" * 16}, f"PENSTOCK_ADMIN_KEY: {PRESET_FORM}"),
        ({"PENSTOCK_KEY_PEPPER": "x" * 16 + "\n"}, f"PENSTOCK_KEY_PEPPER: {PRESET_FORM}"),
        ({"PENSTOCK_ENGINE": "cuda"}, """PENSTOCK_ENGINE: expected 'torch', 'onnx', 'triton' or 'fake', got "cuda\""""),
        (
            {"PENSTOCK_ENGINE": "fake", "PENSTOCK_QUANTIZE": "int8"},
            'PENSTOCK_QUANTIZE: means nothing to engine = "fake"',
        ),
        (
            {"PENSTOCK_API_KEY": "x" * 16, "PENSTOCK_ADMIN_KEY": "x" * 16},
            "PENSTOCK_ADMIN_KEY: expected another key than PENSTOCK_API_KEY",
        ),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], message: str) -> None:
    assert error_from(environ) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 70000}, "--port: expected less than or equal to 65535, got 70000"),
        ({"gateways": 2}, "--gateways: more than 1 needs server.redis_url: each would apply the limits alone"),
        ({"dtype": "fp8"}, """--dtype: expected 'auto', 'float32' or 'bfloat16', got "fp8\""""),
        ({"models": ["./none"]}, 'MODEL ./none: path: no such folder, and no Hugging Face id: "./none"'),
        ({"models": ["a/m", "b/m"]}, "MODEL b/m: m@1 is declared twice"),
        ({"engine": "fake", "dtype": "float32"}, '--dtype: means nothing to engine = "fake"'),
        ({"models": ["a/m"], "engine": "fake"}, 'MODEL a/m: path: means nothing to engine = "fake"'),
        ({"models": ["a/m"], "engine": "triton"}, 'MODEL a/m: url: required by engine = "triton"'),
        (
            {"triton_url": "h:1", "models": ["a/m"], "engine": "triton", "dtype": "bfloat16"},
            '--dtype: means nothing to engine = "triton"',
        ),
        ({"triton_url": "h:8001", "models": ["a/m"]}, '--triton-url: means nothing to engine = "torch"'),
        (
            {"triton_url": "http://h:8001", "models": ["a/m"], "engine": "triton"},
            '--triton-url: expected HOST:PORT, got "http://h:8001"',
        ),
    ],
)
def test_a_bad_flag_is_named(flags: dict[str, Any], message: str) -> None:
    assert error_from({}, **flags) == message


def test_a_file_that_is_no_table_where_a_flag_goes(tmp_path: Path) -> None:
    assert error_of("server = 1", tmp_path, port=1).startswith("p.toml: server: expected a valid table")
    assert error_of("models = [1]", tmp_path, dtype="auto").startswith("p.toml: models[0]: expected a valid table")


def test_tls_files_that_exist(tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem"):
        shutil.copy(__file__, tmp_path / name)
    settings = load(None, {"tls_cert": f"{tmp_path}/c.pem", "tls_key": f"{tmp_path}/k.pem"}, HOME)
    assert settings.server.tls_cert.endswith("c.pem")


tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["server", "models", "port", "name", "quota", "plans", "default", "x y"]), inner
        )
    ),
    max_leaves=12,
)


@config(suppress_health_check=[HealthCheck.too_slow], max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["server", "models", "routing", "quota", "filter", "timeouts", "zzz"]), tables))
def test_any_tables_load_or_get_one_line(raw: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_toml", lambda path: raw)
        assert "\n" not in refusal_of_p_toml()


def refusal_of_p_toml() -> str:
    try:
        load(Path("p.toml"), {"port": 1, "dtype": "auto"}, HOME)
    except SettingsError as error:
        return str(error)
    return ""
