"""The pool of a database: SQLAlchemy's, with what it leaves out.

A pool is a queue of `size` slots, each with a connection or without one yet. Whoever takes a slot has the right to a
connection; who finds none waits for one to come back. So there are never more than `size` connections, and an error
on the way to the server gives the slot to the next in line at once. The slot that came back last goes out first: the
connections that a quiet time has no use for stay at the bottom until they are too old.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.queue import Empty

from atriz_database.errors import DatabaseClosedError, PoolTimeoutError
from atriz_database.owner import Owner, owner, shown

_PING_AFTER_SECONDS = 10.0
_SHOWN_HOLDERS = 3
_USED = "atriz.used"


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool in numbers, at the moment they were read."""

    size: int
    """Connections it makes at most."""
    open: int
    """Connections it has to the server."""
    in_use: int
    """Connections that somebody holds."""
    waiting: int
    """Threads or tasks that wait for a connection."""
    waits: int
    """How many have waited since the pool was made, those who wait now among them."""
    wait_seconds: float
    """How long they have waited together, those who still wait left out."""
    timeouts: int
    """How many waited in vain."""


class SlotPool(QueuePool):
    """A pool of slots, for threads."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "max_overflow": 0, "use_lifo": True})
        self._closed = False
        self._inherited: list[object] = []
        self._fill()
        _pools.add(self)

    def _fill(self) -> None:
        self._lock = threading.Lock()
        self._pool = self._queue_class(self._pool.maxsize, use_lifo=True)
        self._slots = [_slot(self) for _ in range(self._pool.maxsize)]
        for slot in self._slots:
            self._pool.put(slot, False)
        self._holders: dict[ConnectionPoolEntry, tuple[Owner, float]] = {}
        self._waiting = self._waits = self._timeouts = 0
        self._wait_seconds = 0.0

    def _do_get(self) -> ConnectionPoolEntry:
        if self._closed:
            raise DatabaseClosedError(
                f"The database {self.logging_name} has been closed. Make a Database once for as long as the program "
                "runs, and close it at the end."
            )
        try:
            slot = self._pool.get(False)
        except Empty:
            slot = self._wait()
        self._holders[slot] = owner(), time.monotonic()
        return slot

    def _wait(self) -> ConnectionPoolEntry:
        began = time.monotonic()
        with self._lock:
            self._waiting += 1
            self._waits += 1
        try:
            return self._pool.get(True, self._timeout)
        except Empty:
            with self._lock:
                self._timeouts += 1
            raise PoolTimeoutError(self._full()) from None
        finally:
            with self._lock:
                self._waiting -= 1
                self._wait_seconds += time.monotonic() - began

    def _full(self) -> str:
        now = time.monotonic()
        holders = sorted(self._holders.copy().values(), key=lambda each: each[1])
        longest = ", ".join(f"{shown(each)} for {now - since:.1f} s" for each, since in holders[:_SHOWN_HOLDERS])
        return (
            f"All {self._pool.maxsize} connections of {self.logging_name} were in use for {self._timeout:g} s, and "
            f"{self._waiting - 1} others wait. Held the longest: {longest or 'nobody, they came back this moment'}. "
            "Make transactions shorter, keep slow work out of them, or give the Database a larger pool_size."
        )

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._holders.pop(record, None) is None:
            return  # a slot of the process that this one was forked from
        record.info[_USED] = time.monotonic()
        if self._closed:
            record.close()
        self._pool.put(record, False)

    def state(self) -> PoolState:
        """Return the pool's numbers."""
        return PoolState(
            size=self._pool.maxsize,
            open=sum(slot.dbapi_connection is not None for slot in self._slots),
            in_use=len(self._holders),
            waiting=self._waiting,
            waits=self._waits,
            wait_seconds=self._wait_seconds,
            timeouts=self._timeouts,
        )

    def close(self) -> None:
        """Close the connections that nobody holds; the others are closed when they come back."""
        self._closed = True
        self.dispose()

    def dispose(self) -> None:
        """Close the connections that nobody holds."""
        for slot in self._take_all():
            slot.close()
            self._pool.put(slot, False)

    def _take_all(self) -> list[ConnectionPoolEntry]:
        taken = []
        while True:
            try:
                taken.append(self._pool.get(False))
            except Empty:
                return taken

    def checkedout(self) -> int:
        """Return how many connections somebody holds."""
        return len(self._holders)

    def after_fork(self) -> None:
        """Begin anew in a forked process: the connections stay the parent's."""
        for slot in self._slots:
            held = slot.fairy_ref() if slot.fairy_ref is not None else None  # type: ignore[attr-defined]
            # Kept, because what is thrown away is closed, and that would tell the server goodbye for the parent.
            self._inherited.append(slot.dbapi_connection)
            if held is not None:
                held.detach()
        self._inherited.append(self._slots)
        self._fill()


class AsyncSlotPool(SlotPool, AsyncAdaptedQueuePool):
    """A pool of slots, for tasks."""


def _slot(pool: SlotPool) -> ConnectionPoolEntry:
    """Return a slot without a connection; SQLAlchemy connects it when it is first taken."""
    return _ConnectionRecord(pool, connect=False)


# A fork concerns the process as a whole, and so does the one place that knows of it.
_pools: weakref.WeakSet[SlotPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in _pools:
        pool.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def ping_idle(pool: SlotPool) -> None:
    """Have `pool` look at each connection before it goes out, and throw away a broken one.

    A server that ends a connection says so, and what it said waits in the socket: a look at that costs a microsecond,
    a question to the server a round trip. The question is for sockets with something in them, and for connections
    that have been idle for seconds: a firewall or a dead machine says nothing.
    """

    def look(dbapi_connection: Any, slot: ConnectionPoolEntry, _fairy: object) -> None:
        used = slot.info.get(_USED)
        if used is None:
            return  # It has just been made.
        if time.monotonic() - used < _PING_AFTER_SECONDS and not has_news(slot.driver_connection):
            return
        try:
            pool._dialect.do_ping(dbapi_connection)  # type: ignore[union-attr]
        except Exception as error:
            raise DisconnectionError(str(error)) from error

    event.listen(pool, "checkout", look)


def has_news(driver_connection: Any) -> bool:
    """Whether the server has said something that nobody asked for: in most cases that it ends the connection."""
    try:
        return _readable(driver_connection.pgconn.socket)
    except Exception:  # psycopg's own, where the connection is closed already
        return True


if hasattr(select, "poll"):

    def _readable(descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

else:

    def _readable(descriptor: int) -> bool:
        return bool(select.select([descriptor], [], [], 0)[0])
