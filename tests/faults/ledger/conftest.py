"""Every check of this folder speaks to a real Redis."""

from __future__ import annotations

import pytest

from tests.quota.conftest import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
