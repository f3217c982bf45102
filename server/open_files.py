"""How many connections this process can hold: each of them is an open file."""

from __future__ import annotations

import logging
import resource

RESERVED_FILES = 512  # for the database, the workers' sockets, the models' files, and who is told that there is no room

log = logging.getLogger("penstock.open_files")


def room_for(connections: int) -> int:
    """As many, or as many as the system allows; its limit for this process is raised as far as that goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    room = max(soft - RESERVED_FILES, 1)
    log.warning(
        "at most %d connections instead of %d: this process may open %d files (ulimit -n)", room, connections, hard
    )
    return room
