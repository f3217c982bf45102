"""Settings of the whole suite, and the servers that its tests share."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from server.settings_models import BUNDLED_FOLDER
from tests import postgres_server
from tests.hosted_models import HostedModel, paced
from tests.postgres_server import PostgresServer
from tests.quota.redis_server import WHY_NOT, RedisServer, is_installed
from tests.triton_server import MODELS, TritonServer, running_triton

# Without a GPU, Triton's kernels run in its interpreter. It asks when it is imported, and transformers imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Time says nothing on a shared machine. `make soak` asks for the long run.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _running(folder: Path) -> Iterator[RedisServer]:
    if not is_installed():
        pytest.skip(WHY_NOT)
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that do not kill it. Each ledger has a prefix of its own."""
    yield from _running(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of its own, to be killed."""
    yield from _running(tmp_path)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


_prefixes = map("test{}".format, itertools.count())


@pytest.fixture
def prefix() -> str:
    """Of keys that no other test uses."""
    return next(_prefixes)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if (reason := postgres_server.why_not()) is not None:
        pytest.skip(reason)
    server = PostgresServer()
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server for all tests that do it no harm."""
    yield from running_triton(tmp_path_factory.mktemp("triton"), MODELS)


@pytest.fixture(scope="session")
def hosting_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One whose models are workers of ours; for tests that do it no harm."""
    chat = ("--dtype", "float32", "--max-model-len", "256", "--options", '{"threads": 1}')
    models = [HostedModel("fake"), paced("m", 5), HostedModel("chat", chat, str(BUNDLED_FOLDER))]
    yield from running_triton(tmp_path_factory.mktemp("hosting-triton"), models, with_packages=True)
