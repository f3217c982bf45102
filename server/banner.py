"""What the operator sees when a server is ready: where it is, and commands that work as pasted."""

from __future__ import annotations

import json
import shlex

from engines.types import Task
from server.settings import Settings
from server.store.credentials import GeneratedKeys

QUESTION = "What is Penstock?"


def banner(settings: Settings, generated: GeneratedKeys, url: str, task: Task, *, show_key: bool) -> str:
    """Generated keys are shown here and never again; a preset one only when asked for. `task` is the first model's."""
    key = (settings.secrets.api_key if show_key else None) or generated.api_key
    lines = [f"Penstock is ready at {url}", *_models(settings)]
    if key:
        lines.append(f"  API key    {key}" + ("   (shown this once)" if generated.api_key else ""))
    if generated.admin_key:
        lines.append(f"  admin key  {generated.admin_key}   (shown this once)")
    return "\n".join(["", *lines, "", "Try it:", "", _curl(settings.models[0].name, task, url, key), ""])


def _models(settings: Settings) -> list[str]:
    lines = []
    for model in settings.models:
        names = [alias for alias, target in settings.routing.aliases.items() if target in (model.name, model.id)]
        also = f"   (also as {', '.join(names)})" if names else ""
        lines.append(f"  model      {model.id}{also}")
    return lines


def _example(task: Task) -> tuple[str, dict[str, object]]:
    match task:
        case Task.GENERATE:
            return "chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}
        case Task.EMBED:
            return "embeddings", {"input": QUESTION}
        case Task.SCORE:
            return "rerank", {"query": QUESTION, "documents": ["A gate.", "A gate and pipe that feeds turbines."]}


def _curl(model: str, task: Task, url: str, key: str | None) -> str:
    """One line: a backslash at its end would not survive every way of pasting."""
    path, fields = _example(task)
    body = {"model": model, **fields}
    authorization = shlex.quote(f"Authorization: Bearer {key}") if key else '"Authorization: Bearer $PENSTOCK_API_KEY"'
    insecure = " -k" if url.startswith("https") else ""
    return (
        f"curl -s{insecure} {url}/{path} -H {authorization}"
        f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )
