"""A database that is away, as clients are told of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from server.errors import Overloaded

DATABASE_FAULTS = (SQLAlchemyError, OSError)

log = logging.getLogger(__name__)


def database_away(error: BaseException) -> Overloaded:
    """It can't be reached, or fails: a 503, and no fault of ours."""
    log.warning("the database failed: %s", type(error).__name__)
    return Overloaded("The database can't be reached at the moment.", retry_after_ms=1000)


@contextmanager
def database_reached() -> Iterator[None]:
    """Around nothing but a call of the store."""
    try:
        yield
    except DATABASE_FAULTS as error:
        raise database_away(error) from error
