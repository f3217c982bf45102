"""Many literal strings as one regular expression whose search time doesn't grow with their number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_END = ""  # a trie's key for "a literal ends here"


def trie_pattern(literals: Iterable[str]) -> str:
    """A pattern that matches the longest literal at a position. At least one literal, none of them empty.

    A plain alternation of 750 special tokens is tried one by one at every "[" of a hostile prompt; a trie fails at
    the first character that no literal has there.
    """
    trie: dict[str, Any] = {}
    for literal in literals:
        node = trie
        for character in literal:
            node = node.setdefault(character, {})
        node[_END] = {}
    return _pattern(trie)


def _pattern(root: dict[str, Any]) -> str:
    """Without recursion: a literal may be longer than Python's stack is deep."""
    done: dict[int, str] = {}
    stack = [(root, False)]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            branches = [re.escape(c) + done[id(child)] for c, child in node.items() if c != _END]
            done[id(node)] = _alternatives(branches, optional=_END in node)
        else:
            stack.append((node, True))
            stack.extend((child, False) for c, child in node.items() if c != _END)
    return done[id(root)]


def _alternatives(branches: list[str], *, optional: bool) -> str:
    if not branches:
        return ""
    if len(branches) == 1 and not optional:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + ("?" if optional else "")
