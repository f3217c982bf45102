"""What the operator sees when a server is ready: where it is, and commands that work as pasted."""

from __future__ import annotations

import json
import shlex

from server.settings import Settings
from server.store.credentials import GeneratedKeys

QUESTION = "What is Penstock?"


def banner(settings: Settings, generated: GeneratedKeys, url: str, *, show_key: bool) -> str:
    """Generated keys are shown here and never again; a preset one only when asked for."""
    key = (settings.secrets.api_key if show_key else None) or generated.api_key
    lines = [f"Penstock is ready at {url}", *_models(settings)]
    if key:
        lines.append(f"  API key    {key}" + ("   (shown this once)" if generated.api_key else ""))
    if generated.admin_key:
        lines.append(f"  admin key  {generated.admin_key}   (shown this once)")
    return "\n".join(["", *lines, "", "Try it:", "", _curl(settings.models[0].name, url, key), ""])


def _models(settings: Settings) -> list[str]:
    lines = []
    for model in settings.models:
        names = [alias for alias, target in settings.routing.aliases.items() if target in (model.name, model.id)]
        also = f"   (also as {', '.join(names)})" if names else ""
        lines.append(f"  model      {model.id}{also}")
    return lines


def _curl(model: str, url: str, key: str | None) -> str:
    """One line: a backslash at its end would not survive every way of pasting."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    authorization = shlex.quote(f"Authorization: Bearer {key}") if key else '"Authorization: Bearer $PENSTOCK_API_KEY"'
    insecure = " -k" if url.startswith("https") else ""
    return (
        f"curl -s{insecure} {url}/chat/completions -H {authorization}"
        f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )
