"""What the operator sees when a server is ready: where it is, and commands that work as pasted."""

from __future__ import annotations

import json
import shlex

from server.services import Services

QUESTION = "What is Penstock?"


def banner(services: Services, url: str, *, show_key: bool) -> str:
    """Generated keys are shown here and never again; a preset one only when asked for."""
    generated, secrets = services.generated_keys, services.settings.secrets
    key = (secrets.api_key if show_key else None) or generated.api_key
    lines = [f"Penstock is ready at {url}", *_models(services)]
    if key:
        lines.append(f"  API key    {key}" + ("   (shown this once)" if generated.api_key else ""))
    if generated.admin_key:
        lines.append(f"  admin key  {generated.admin_key}   (shown this once)")
    return "\n".join(["", *lines, "", "Try it:", "", _curl(services, url, key), ""])


def _models(services: Services) -> list[str]:
    aliases = services.settings.routing.aliases
    lines = []
    for deployment in services.registry.deployments.values():
        names = [alias for alias, target in aliases.items() if target in (deployment.model, deployment.id)]
        also = f"   (also as {', '.join(names)})" if names else ""
        lines.append(f"  model      {deployment.id}{also}")
    return lines


def _curl(services: Services, url: str, key: str | None) -> str:
    """One line: a backslash at its end would not survive every way of pasting."""
    model = next(iter(services.registry.deployments.values())).model
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    authorization = shlex.quote(f"Authorization: Bearer {key}") if key else '"Authorization: Bearer $PENSTOCK_API_KEY"'
    insecure = " -k" if url.startswith("https") else ""
    return (
        f"curl -s{insecure} {url}/chat/completions -H {authorization}"
        f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )
