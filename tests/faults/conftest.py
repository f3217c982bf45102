"""One server for the faults that leave it alive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients import Tenant
from tests.penstock_process import PenstockProcess

REQUESTS_A_DAY, TOKENS_A_DAY = 100_000, 100_000_000
BOOKS = f"""
[quota.plans.default]
account = {{ requests_per_day = {REQUESTS_A_DAY}, tokens_per_day = {TOKENS_A_DAY}, concurrent = 64 }}
"""
CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 5 }}

[[models]]
name = "narrow"
engine = "fake"
max_num_seqs = 2
options = {{ delay_ms = 5 }}

[[models]]
name = "chunked"
engine = "fake"
max_num_seqs = 16
options = {{ delay_ms = 20, token_budget = 16 }}

{BOOKS}
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("faults"), CONFIG) as running:
        yield running


@pytest.fixture
def tenant(server: PenstockProcess) -> Tenant:
    return Tenant.create(server)
