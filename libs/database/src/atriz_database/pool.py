"""The pool of a database: SQLAlchemy's, with what it leaves out.

A pool is a queue of `size` slots, each with a connection or without one yet. Whoever takes a slot has the right to a
connection; who finds none waits for one to come back. So there are never more than `size` connections, and an error
on the way to the server gives the slot to the next in line at once. The slot that came back last goes out first: the
connections that a quiet time has no use for stay at the bottom until they are too old.

A slot that comes back is anybody's, and the first in line is told of it. Were it his alone, each transaction would wait
for a thread to be woken, which under load takes as long as the transaction. But if nobody in line has got one for half
a millisecond the next is handed over, so that each waits for a bounded time: Rust's parking_lot calls it eventual
fairness, and has the figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import await_

from atriz_database.errors import DatabaseClosedError, PoolTimeoutError
from atriz_database.owner import Owner, owner, shown

_PING_AFTER_SECONDS = 10.0
# What came back this moment has hardly had time to break.
_FRESH_SECONDS = 0.001
_PASSED_OVER_SECONDS = 0.0005
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
    """How many waited in vain, those who were cancelled among them."""


class SlotPool(Pool):
    """A pool of slots, for threads."""

    def __init__(
        self, creator: Any, pool_size: int = 10, timeout: float = 30.0, pre_ping: bool = False, **settings: Any
    ) -> None:
        super().__init__(creator, **settings)
        self._size = pool_size
        self._timeout = timeout
        self._pings = pre_ping
        self._closed = False
        self._inherited: list[object] = []
        self._fill()
        _pools.add(self)

    def _fill(self) -> None:
        # Reentrant, because a connection that was forgotten comes back whenever the garbage collector finds it.
        self._lock = threading.RLock()
        self._slots = [_ConnectionRecord(self, connect=False) for _ in range(self._size)]
        self._idle: deque[ConnectionPoolEntry] = deque(self._slots)
        self._queue: deque[_Waiter] = deque()
        self._holders: dict[ConnectionPoolEntry, tuple[Owner, float]] = {}
        self._waits = self._timeouts = 0
        self._wait_seconds = 0.0
        self._served = 0.0  # when somebody in line last got a slot

    def _do_get(self) -> ConnectionPoolEntry:
        self._refuse_closed()
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = self._wait()
        try:
            self._refuse_closed()
        except DatabaseClosedError:
            # Closed while this one waited, and those behind it are to hear of it, too.
            slot.close()
            self._give(slot)
            raise
        self._holders[slot] = owner(), time.monotonic()
        if self._pings:
            self._ping(slot)
        return slot

    def _ping(self, slot: ConnectionPoolEntry) -> None:
        """Look at a connection before it goes out, and throw it away if it is broken: a new one is made in its place.

        A server that ends a connection says so, and what it said waits in the socket: a look at that costs a
        microsecond, a question to the server a round trip. The question is for sockets with something in them, and for
        connections that have been idle for seconds: a firewall or a dead machine says nothing.
        """
        used = slot.info.get(_USED)
        if used is None or slot.dbapi_connection is None:
            return  # It is about to be made.
        idle = time.monotonic() - used
        if idle < _PING_AFTER_SECONDS:
            if not (self.is_worth_a_look(idle) and has_news(slot.driver_connection)):
                return
        elif -1 < self._recycle < time.time() - slot.starttime:  # type: ignore[attr-defined]
            return  # It is replaced for its age.
        try:
            self._dialect.do_ping(slot.dbapi_connection)  # type: ignore[union-attr]
        except Exception as error:
            slot.invalidate(error)
        except BaseException as error:  # cancelled or interrupted
            slot.invalidate(error)
            self._do_return_conn(slot)
            raise

    def is_worth_a_look(self, idle: float) -> bool:
        """Whether a connection may have broken that has been idle for so many seconds.

        Each look lets another thread have the interpreter: where others wait, only at what may have broken since.
        """
        return idle >= _FRESH_SECONDS or not self._queue

    def _refuse_closed(self) -> None:
        if self._closed:
            raise DatabaseClosedError(
                f"The database {self.logging_name} has been closed. Make a Database once for as long as the program "
                "runs, and close it at the end."
            )

    def _wait(self) -> ConnectionPoolEntry:
        waiter = self._waiter()
        began = time.monotonic()
        with self._lock:
            # One may have come back meanwhile, and whoever does not wait takes it without the lock.
            with contextlib.suppress(IndexError):
                return self._idle.pop()
            self._queue.append(waiter)
            self._waits += 1
        try:
            while waiter.slot is None and (left := began + self._timeout - time.monotonic()) > 0:
                waiter.block(left)
                if waiter.slot is None:
                    self._look(waiter)
        except BaseException:  # cancelled or interrupted, perhaps with a slot in hand already
            self._leave(waiter, began)
            if waiter.slot is not None:
                self._give(waiter.slot)
            raise
        self._leave(waiter, began)
        if waiter.slot is None:
            raise PoolTimeoutError(self._full())
        return waiter.slot

    def _look(self, waiter: _Waiter) -> None:
        """Let somebody who was called have an idle slot, if there still is one."""
        with self._lock:
            waiter.is_called = False
            if waiter.slot is None:
                with contextlib.suppress(IndexError):
                    waiter.slot = self._idle.pop()
                    self._queue.remove(waiter)
                    self._served = time.monotonic()
            self._call()

    def _call(self) -> None:
        """Tell the first in line that a slot is idle. Only under the lock."""
        if self._idle and self._queue and not (first := self._queue[0]).is_called:
            first.is_called = True
            self._tell(first)

    def _tell(self, waiter: _Waiter) -> None:
        waiter.wake()

    def _leave(self, waiter: _Waiter, began: float) -> None:
        """Take somebody out of the queue: after this nothing is given to him any more."""
        with self._lock:
            self._wait_seconds += time.monotonic() - began
            if waiter.slot is None:
                self._queue.remove(waiter)
                self._timeouts += 1
            self._call()  # It may have been this one who was called.

    def _waiter(self) -> _Waiter:
        return _ThreadWaiter()

    def _give(self, slot: ConnectionPoolEntry) -> None:
        """Take a slot back: for whoever asks first, or for the first in line if others have come before him."""
        with self._lock:
            if self._queue and (now := time.monotonic()) - self._served > _PASSED_OVER_SECONDS:
                first = self._queue.popleft()
                first.slot, self._served = slot, now
                if not first.is_called:
                    first.wake()
            else:
                self._idle.append(slot)
                self._call()

    def _full(self) -> str:
        now = time.monotonic()
        holders = sorted(self._holders.copy().values(), key=lambda each: each[1])
        longest = ", ".join(f"{shown(each)} for {now - since:.1f} s" for each, since in holders[:_SHOWN_HOLDERS])
        return (
            f"All {self._size} connections of {self.logging_name} were in use for {self._timeout:g} s, and "
            f"{len(self._queue)} others wait. Held the longest: {longest or 'nobody, they came back this moment'}. "
            "Make transactions shorter, keep slow work out of them, or give the Database a larger pool_size."
        )

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._holders.pop(record, None) is None:
            return  # a slot of the process that this one was forked from
        record.info[_USED] = time.monotonic()
        if self._closed:
            record.close()
        self._give(record)

    def state(self) -> PoolState:
        """Return the pool's numbers."""
        return PoolState(
            size=self._size,
            open=sum(slot.dbapi_connection is not None for slot in self._slots),
            in_use=len(self._holders),
            waiting=len(self._queue),
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
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
        for slot in idle:
            slot.close()
            self._give(slot)

    def recreate(self) -> SlotPool:
        """Return a new pool with the same settings."""
        return type(self)(
            self._creator,
            pool_size=self._size,
            timeout=self._timeout,
            pre_ping=self._pings,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """Return the pool's numbers as text."""
        return str(self.state())

    def after_fork(self) -> None:
        """Begin anew in a forked process: the connections stay the parent's."""
        for slot in self._slots:
            held = slot.fairy_ref() if slot.fairy_ref is not None else None
            if slot.dbapi_connection is not None:
                _cut_off(slot.driver_connection)
            # Kept, because psycopg warns of what is thrown away unclosed.
            self._inherited.append(slot.dbapi_connection)
            if held is not None:
                held.detach()
        self._inherited.append(self._slots)
        self._fill()


class AsyncSlotPool(SlotPool):
    """A pool of slots, for tasks."""

    _is_asyncio = True

    def _waiter(self) -> _Waiter:
        return _TaskWaiter()

    def _tell(self, waiter: _Waiter) -> None:
        # A task that gives a slot back and asks again does so before anybody else runs. So the loop looks first, and
        # wakes nobody in vain.
        waiter.loop.call_soon(self._serve, waiter)  # type: ignore[attr-defined]

    def _serve(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter.slot is None and waiter in self._queue:
                self._look(waiter)
        if waiter.slot is not None:
            waiter.wake()


class _Waiter(Protocol):
    """Somebody who waits for a slot."""

    slot: ConnectionPoolEntry | None
    """What was handed over, or taken."""
    is_called: bool
    """Whether he was told of an idle slot, and has not looked yet."""

    def block(self, seconds: float) -> None:
        """Return when somebody wakes him, or after `seconds`."""

    def wake(self) -> None:
        """Have `block` return."""


class _ThreadWaiter:
    __slots__ = ("_lock", "is_called", "slot")

    def __init__(self) -> None:
        self.slot: ConnectionPoolEntry | None = None
        self.is_called = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def block(self, seconds: float) -> None:
        self._lock.acquire(timeout=seconds)

    def wake(self) -> None:
        # It is free already where the time ran out just when somebody called.
        with contextlib.suppress(RuntimeError):
            self._lock.release()


class _TaskWaiter:
    __slots__ = ("_future", "is_called", "loop", "slot")

    def __init__(self) -> None:
        self.slot: ConnectionPoolEntry | None = None
        self.is_called = False
        self.loop = asyncio.get_running_loop()
        self._future = self.loop.create_future()

    def block(self, seconds: float) -> None:
        timer = self.loop.call_later(seconds, self.wake)
        try:
            await_(self._future)
        finally:
            timer.cancel()
        self._future = self.loop.create_future()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


# A fork concerns the process as a whole, and so does the one place that knows of it.
_pools: weakref.WeakSet[SlotPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in _pools:
        pool.after_fork()


def _cut_off(driver_connection: Any) -> None:
    """Put a dead socket in the place of one that is the parent's.

    Whatever still uses the connection in this process, if only to close it, would else talk to the parent's server
    process, in the middle of the parent's transaction. The socket itself stays the parent's, and open.
    """
    dead, other = socket.socketpair()
    other.close()
    with dead, contextlib.suppress(Exception):  # psycopg's own, where the connection is closed already
        os.dup2(dead.fileno(), driver_connection.pgconn.socket, inheritable=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
