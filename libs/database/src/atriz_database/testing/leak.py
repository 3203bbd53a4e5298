"""Connections that a test has left open."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from atriz_database.databases import Connection

_VISITORS = """
    SELECT pid, application_name, coalesce(state, ''), query FROM pg_stat_activity
    WHERE datname = %s AND usesysid IS NOT NULL ORDER BY pid
"""
_POLL_SECONDS = 0.002
_LONGEST_QUERY = 200


@dataclass(frozen=True, slots=True)
class Leak:
    """A connection that is still open, as the server sees it."""

    pid: int
    application: str
    state: str
    query: str
    """Its last statement, or the one that it is at."""

    def __str__(self) -> str:
        query = " ".join(self.query.split())
        cut = query if len(query) <= _LONGEST_QUERY else f"{query[:_LONGEST_QUERY]}…"
        return f"pid {self.pid} ({self.application or 'no application name'}, {self.state}): {cut or 'no query yet'}"


def leaks(connection: Connection, name: str, patience: float = 1.0) -> Sequence[Leak]:
    """Return the connections to a database that don't go.

    :param connection: to another database of the server.
    :param patience: for how many seconds one may go on that has been closed: its process takes a moment to end.
    """
    deadline = time.monotonic() + patience
    while True:
        found = [Leak(*row) for row in connection.execute(_VISITORS, [name])]
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(_POLL_SECONDS)
