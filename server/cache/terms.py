"""What a request may have of the cache: decided from what its client asks for and from how it samples."""

from __future__ import annotations

from dataclasses import dataclass

from server.cache.wish import Wish
from server.job import Job


@dataclass(slots=True, frozen=True)
class Terms:
    """`reads`: a recorded answer, or one that is under way, will do. `shares`: others may have this one."""

    reads: bool
    shares: bool


def terms_of(job: Job) -> Terms:
    """Unasked, only what would be the same if it were computed again."""
    if job.caller.is_in_background:  # whoever joined it would wait for everybody else
        return Terms(reads=False, shares=False)
    match job.caller.cache:
        case None:
            same_again = _is_deterministic(job)
            return Terms(reads=same_again, shares=same_again)
        case Wish.USE:
            return Terms(reads=True, shares=True)
        case Wish.REFRESH:
            return Terms(reads=False, shares=True)
        case Wish.NO_STORE:
            return Terms(reads=False, shares=False)


def _is_deterministic(job: Job) -> bool:
    """Greedy, seeded, or vectors."""
    return all(p.texts or p.sampling.is_greedy or p.sampling.seed is not None for p in job.prompts)
