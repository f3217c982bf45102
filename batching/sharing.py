"""How accounts share an engine's places: who waits for one does not wait for the answers of whoever has most of them.

The queue alone is fair in what it lets in. But where one account has all places, others would wait until one of its
answers ends, which may take minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from batching.sequence import Sequence


def has_most(running: Iterable[Sequence]) -> str | None:
    """The account with most places; None where nothing runs."""
    held = Counter(sequence.request.account for sequence in running)
    return held.most_common(1)[0][0] if held else None


def gives_way(running: list[Sequence], newcomer: Sequence, num_blocks: int) -> Sequence | None:
    """Who is set aside for one that needs so many blocks; None: nobody, and it waits.

    Of the account that has most places, the one that was set aside least often, and of those the latest to be admitted.
    That account keeps more places than the newcomer's will have, more blocks than the newcomer takes, and what is more
    urgent.
    """
    held = Counter(sequence.request.account for sequence in running)
    account = has_most(running)
    if account is None or held[account] <= held[newcomer.request.account] + 1:
        return None
    theirs = [sequence for sequence in running if sequence.request.account == account]
    willing = [sequence for sequence in theirs if sequence.request.priority >= newcomer.request.priority]
    if not willing:
        return None
    victim = min(reversed(willing), key=lambda sequence: sequence.num_preemptions)
    kept = sum(len(sequence.block_table) for sequence in theirs if sequence is not victim)
    return victim if kept >= num_blocks else None
