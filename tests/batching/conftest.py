import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def socket_path() -> Iterator[str]:
    """Not under tmp_path, which can be longer than the path of a socket may be."""
    with tempfile.TemporaryDirectory(prefix="pen-") as folder:
        yield f"{folder}/w.sock"
