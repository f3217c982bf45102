"""constraints.txt says the version of everything that Penstock needs, so that what is audited is what runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.partition("==")[::2] for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): re.split(r"[ ;]", version)[0] for name, version in pairs}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """The names of all that is installed because of it, however far away."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return  # an extra that this machine has not
    yield name
    for requirement in map(Requirement, requires):
        environments = [dict(default_environment()) | {"extra": extra} for extra in (extras or {""})]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield from needed(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


def test_all_that_is_needed_has_its_version() -> None:
    versions = pinned()
    names = set(needed("penstock", frozenset({"all"}), set())) - {"penstock"}
    assert {"fastapi", "torch", "starlette", "hypothesis"} <= names
    names -= {"setuptools", "triton"}  # come with the environment, and with a torch for GPUs
    assert sorted(names - versions.keys()) == []
    installed = {name: distribution(name).version.partition("+")[0] for name in names}
    assert installed == {name: versions[name].partition("+")[0] for name in names}
