"""A look that is interrupted leaves nothing behind on any server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tree import Tree

from atriz_database import databases, interrupt, revisions
from atriz_database.look import Look, look

_AT_WORK = """
    SELECT count(*) = {} FROM pg_stat_activity
    WHERE datname = '{}' AND application_name LIKE 'atriz%' AND state = 'active'
"""


def look_at(fleet: Tree, *names: str) -> list[Look]:
    """Look at databases, as a verb does."""
    targets = [fleet.target(name) for name in names]
    return look(targets, [revisions.read(each.package.folder / "migrations" / "versions") for each in targets])


def test_an_interrupt_between_two_threads_ends_what_the_first_waits_for(
    fleet: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a statement may wait behind a lock before the last thread is started."""
    fleet.at_head()
    start = interrupt.start_deaf

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        fleet.wait_until("core", _AT_WORK.format(1, fleet.database("left")))
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupt, "start_deaf", start_and_be_interrupted)
    with fleet.connect("left") as holder, holder.transaction():
        holder.execute("LOCK TABLE alembic_version")
        with pytest.raises(KeyboardInterrupt):
            look_at(fleet, "core", "left", "right")
        fleet.wait_until("core", _AT_WORK.format(0, fleet.database("left")))


def test_a_connection_that_comes_after_the_interrupt_asks_nothing(fleet: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed before its first statement, which nobody would cancel."""
    fleet.at_head()
    connect, interrupted, closed = databases.connect, threading.Event(), threading.Event()

    @contextmanager
    def connect_late(target: Any, **options: Any) -> Iterator[databases.Connection]:
        if target.package.name == "core":
            raise KeyboardInterrupt
        interrupted.wait(20)
        with connect(target, **options) as connection:
            try:
                yield connection
            finally:
                if connection.closed:
                    closed.set()

    monkeypatch.setattr(databases, "connect", connect_late)
    with pytest.raises(KeyboardInterrupt):
        look_at(fleet, "core", "left")
    interrupted.set()
    assert closed.wait(20)
