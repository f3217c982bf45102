"""What the field `model` means, for whom, and which replica serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from batching.stats import WorkerStats
from engines.types import Task, VectorInfo
from server.auth import Principal
from server.balancing import Replica
from server.errors import InvalidRequest, ModelNotFound, Overloaded
from server.registry import Deployment, Registry
from server.routing import Router, pick, serving
from server.settings_sections import RoutingSettings
from server.store.records import KeyKind

SETTINGS = RoutingSettings(
    aliases={"gpt-4": "a", "old": "a@1", "gone": "b@9"}, default_versions={"a": "1", "c": "not-there"}
)


def _principal(models: Iterable[str] | None = None) -> Principal:
    scope = None if models is None else frozenset(models)
    return Principal("acct", "acme", "key", KeyKind.API, scope, None, "default", {}, {}, None)


def _deployment(model: str, version: str, replicas: Iterable[Any] = ()) -> Deployment:
    return Deployment(model, version, cast(Any, None), cast(Any, None), list(replicas), "fp")


def _router(*ids: str) -> Router:
    deployments = {name: _deployment(*name.split("@")) for name in ids}
    return Router(cast(Registry, SimpleNamespace(deployments=deployments)), SETTINGS)


ROUTER = _router("a@1", "a@2", "b@1", "b@3", "b@2", "c@1")


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("a", "a@1"),  # as configured
        ("b", "b@2"),  # declared last
        ("a@2", "a@2"),
        ("b@3", "b@3"),
        ("gpt-4", "a@1"),
        ("old", "a@1"),
    ],
)
def test_names(name: str, resolved: str) -> None:
    assert ROUTER.resolve(name, _principal()).id == resolved


@pytest.mark.parametrize("name", ["", "nobody", "a@3", "a@", "@1", "A", "a@1@1", "gpt-4@1", "gone", "c", "x" * 10_000])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        ROUTER.resolve(name, _principal())
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert len(caught.value.message) < 300


def test_a_model_outside_the_scope_is_no_different_from_one_that_is_not_there() -> None:
    def message(name: str, caller: Principal) -> str:
        with pytest.raises(ModelNotFound) as caught:
            ROUTER.resolve(name, caller)
        return caught.value.message.replace(f"'{name}'", "…")

    assert message("a", _principal({"b"})) == message("nobody", _principal({"b"}))


@pytest.mark.parametrize(
    ("scope", "ids"),
    [
        (None, {"a", "b", "a@1", "a@2", "b@1", "b@2", "b@3", "c@1", "gpt-4", "old"}),
        ({"a"}, {"a", "a@1", "a@2", "gpt-4", "old"}),
        ({"a@2"}, {"a@2"}),
        ({"a@1"}, {"a", "a@1", "gpt-4", "old"}),
        (set(), set()),
    ],
)
def test_a_key_sees_what_it_can_ask_for(scope: set[str] | None, ids: set[str]) -> None:
    visible = dict(ROUTER.visible(_principal(scope)))
    assert visible.keys() == ids
    assert all(ROUTER.resolve(name, _principal(scope)) is deployment for name, deployment in visible.items())


@pytest.mark.parametrize(
    ("scope", "ids"),
    [
        ({"gpt-4"}, {"a", "a@1", "a@2", "gpt-4", "old"}),  # all that "a" is
        ({"old"}, {"a", "a@1", "gpt-4", "old"}),
        ({"gone", "nobody"}, set()),
        ({"gone", "b@1"}, {"b@1"}),
    ],
)
def test_an_alias_in_a_scope_stands_for_its_target(scope: set[str], ids: set[str]) -> None:
    assert dict(ROUTER.visible(_principal(scope))).keys() == ids


def _replica(client: object | None = ..., *, is_away: bool = False) -> Any:
    if client is not None:
        client = SimpleNamespace(stats=WorkerStats(ready=not is_away), closed=asyncio.Event())
    return Replica(cast(Any, SimpleNamespace(client=client)))


def test_no_replica_is_an_overload_that_passes() -> None:
    for replicas in ([], [_replica(client=None)]):
        with pytest.raises(Overloaded) as caught:
            pick(_deployment("a", "1", replicas))
        assert (caught.value.status, caught.value.code) == (503, "engine_starting")
        assert int(caught.value.headers["retry-after-ms"]) > 0


def test_a_model_whose_server_is_away_says_so() -> None:
    with pytest.raises(Overloaded, match="a@1") as caught:
        pick(_deployment("a", "1", [_replica(is_away=True), _replica(client=None)]))
    assert (caught.value.status, caught.value.code) == (503, "engine_away")


def test_a_model_that_generates_embeds_if_its_engine_can() -> None:
    plain = _deployment("a", "1")
    both = replace(plain, vectors=VectorInfo(8))
    pairs = replace(plain, task=Task.SCORE, vectors=VectorInfo(1))
    assert serving(both, Task.GENERATE) is serving(both, Task.EMBED) is serving(both, Task.EMBED, Task.SCORE) is both
    assert serving(pairs, Task.EMBED, Task.SCORE) is pairs
    for deployment, reason in ((plain, "its engine has no embeddings of a generating model"), (pairs, "scores pairs")):
        with pytest.raises(InvalidRequest, match=reason) as caught:
            serving(deployment, Task.EMBED)
        assert (caught.value.code, caught.value.param) == ("unsupported_model", "model")
