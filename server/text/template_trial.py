"""A model's chat templates, tried before they are used: in a process of their own, killed if they take too much.

A render is bounded too (`sandbox`), but compiling is not: constants are computed there; and some filters make a text
from two that is as large as both multiplied. What a template does for the usual kinds of conversation is seen here.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest
from server.text.sandbox import TooLong
from server.text.tokenizer_files import TokenizerError

CPU_LIMIT = 0.8  # seconds; a usual one takes some milliseconds
MEMORY_LIMIT = 256 * 2**20  # bytes besides what Python takes
TOO_LONG = f"takes more than {CPU_LIMIT:g} s for a short conversation"
TOO_LARGE = "makes more of a short conversation than a prompt may be"
PATIENCE = 60.0  # seconds for all of it, on a machine that has other things to do

_USER = {"role": "user", "content": "Hello"}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER, {"role": "assistant", "content": "Hi"}, _USER],
    [
        _USER,
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ],
)


def try_templates(sources: Mapping[str, str], special_tokens: Mapping[str, str], model: str) -> None:
    """Raises TokenizerError for templates that are not valid, or take too much time or memory."""
    asked = json.dumps({"sources": dict(sources), "special_tokens": dict(special_tokens), "model": model})
    command = [sys.executable, "-m", "server.text.template_trial"]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, input=asked, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise TokenizerError(f"the chat template of {model} could not be tried in {PATIENCE:g} s") from None
    if done.returncode == -signal.SIGPROF:
        raise TokenizerError(f"the chat template of {model} {TOO_LONG}")
    if done.returncode != 0:
        raise TokenizerError(f"the chat template of {model} can't be tried: its process ended with {done.returncode}")
    if done.stdout:
        raise TokenizerError(done.stdout)


def main() -> None:
    asked = json.load(sys.stdin)
    _bound()
    try:
        _try(asked["sources"], asked["special_tokens"], asked["model"])
    except (TokenizerError, MemoryError) as error:
        sys.stdout.write(str(error) or f"the chat template of {asked['model']} {TOO_LARGE}")


def _try(sources: Mapping[str, str], special_tokens: Mapping[str, str], model: str) -> None:
    """Raises TokenizerError or MemoryError."""
    from server.text.chat_template import ChatTemplate

    template = ChatTemplate(sources, special_tokens, model)
    for messages in _CONVERSATIONS:
        for tools in (None, [_TOOL]):
            try:
                template.render(messages, tools=tools)
            except InvalidRequest as error:  # what it refuses is its own affair
                if isinstance(error.__cause__, TooLong):
                    raise TokenizerError(f"the chat template of {model} {TOO_LARGE}") from None
                if isinstance(error.__cause__, MemoryError):
                    raise MemoryError from None


def _bound() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_LIMIT, now + MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)


if __name__ == "__main__":
    main()
