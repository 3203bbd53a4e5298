"""Somebody who holds a lock that a revision wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tree import Tree

from atriz_database import databases

WAITING = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""Whether anybody waits for a lock in the database that is asked."""


@contextmanager
def holding(tree: Tree, statement: str, *more: str) -> Iterator[databases.Connection]:
    """Hold what a statement locks until the block is left, or the connection's transaction is ended."""
    with tree.connect("left") as holder:
        holder.execute("SET application_name = 'a report'")
        holder.execute("BEGIN")
        for each in (statement, *more):
            holder.execute(each.encode())
        yield holder
        if not holder.closed:
            holder.rollback()
