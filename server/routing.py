"""What a request's `model` field means, and which replica gets the request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from engines.types import Task
from server.affinity import prefix_keys
from server.auth import Principal
from server.balancing import Replica
from server.errors import InvalidRequest, ModelNotFound, Overloaded
from server.model_state import STARTING_RETRY_MS, starting
from server.registry import Deployment, Registry
from server.settings_sections import RoutingSettings


class Router:
    """`name`, `name@version` and aliases -> Deployment -> Replica."""

    def __init__(self, registry: Registry, settings: RoutingSettings) -> None:
        self._registry = registry
        self._settings = settings

    def resolve(self, model: str, principal: Principal) -> Deployment:
        """Raises ModelNotFound, for a model that the key may not see too: it does not learn that there is one."""
        target = self._settings.aliases.get(model, model)
        deployment = self._registry.deployments.get(target) or self._default_version(target)
        if deployment is None or not self._may_use(principal, deployment):
            raise ModelNotFound(
                f"The model '{model[:128]}' does not exist or you do not have access to it.", param="model"
            )
        return deployment

    def _may_use(self, principal: Principal, deployment: Deployment) -> bool:
        """A scope names models, versions, or aliases, which stand for what they mean here."""
        if principal.may_use_model(deployment.model, deployment.version):
            return True
        meant = {self._settings.aliases.get(name) for name in principal.models or ()}
        return deployment.model in meant or deployment.id in meant

    def _default_version(self, name: str) -> Deployment | None:
        """The configured one, else the version declared last."""
        if (version := self._settings.default_versions.get(name)) is not None:
            return self._registry.deployments.get(f"{name}@{version}")
        versions = [d for d in self._registry.deployments.values() if d.model == name]
        return versions[-1] if versions else None

    def visible(self, principal: Principal) -> Iterator[tuple[str, Deployment]]:
        """Every id that the key can ask for: names, names with versions, aliases."""
        deployments = self._registry.deployments.values()
        names = dict.fromkeys(d.model for d in deployments)
        for name in [*names, *(d.id for d in deployments), *self._settings.aliases]:
            try:
                yield name, self.resolve(name, principal)
            except ModelNotFound:
                continue


def serving(deployment: Deployment, *tasks: Task) -> Deployment:
    """The deployment, if it is served for one of these; one that generates embeds as well, if its engine can. Raises
    InvalidRequest."""
    embeds = deployment.task is Task.GENERATE and deployment.vectors is not None
    if deployment.task in tasks or (embeds and Task.EMBED in tasks):
        return deployment
    what = {
        Task.GENERATE: "generates text, and its engine has no embeddings of a generating model",
        Task.EMBED: "turns texts into vectors and does not generate or classify",
        Task.SCORE: "scores pairs of texts and does nothing else",
    }
    message = f"The model {deployment.id} {what[deployment.task]}: it can't be used with this endpoint."
    raise InvalidRequest(message, param="model", code="unsupported_model")


def pick(deployment: Deployment, prompt: Sequence[int] = (), salt: bytes = b"") -> Replica:
    """The replica for a new request. Raises Overloaded while none serves."""
    deployment.check_served()
    keys = prefix_keys(prompt, salt) if len(deployment.replicas) > 1 else []
    if (replica := deployment.balancer.pick(time.monotonic(), keys)) is None:
        raise _not_ready(deployment)
    return replica


def _not_ready(deployment: Deployment) -> Overloaded:
    if all(replica.client is None for replica in deployment.replicas):
        return starting(deployment.id)
    message = f"The server of the model {deployment.id} can't be reached at the moment."
    return Overloaded(message, code="engine_away", retry_after_ms=STARTING_RETRY_MS)
