"""What tasks wait with: greenlets that are kept, and one look at all the sockets of an event loop.

SQLAlchemy's and our own sync code runs for tasks in greenlets, which give way to the event loop wherever they wait: see
``docs/decisions/0013-sync-and-async.md``. SQLAlchemy makes a greenlet for each call, which takes a stack from the
system and gives it back, and has the loop's selector learn and forget a socket for each answer of the server. Both
together took longer than all the rest of a short transaction.
"""

from __future__ import annotations

import asyncio
import select
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

import psycopg
from greenlet import getcurrent, greenlet
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.waiting import READY_R, WAIT_R, Ready, Wait
from sqlalchemy.dialects.postgresql.psycopg import AsyncAdapt_psycopg_connection, AsyncAdapt_psycopg_cursor
from sqlalchemy.util import await_

T = TypeVar("T")

# Those beyond are given back: a moment in which thousands of tasks ask is not to hold their stacks for ever.
_KEPT_GREENLETS = 100
# How often those who wait look for themselves, in seconds: one timer for all, where psycopg has one for each answer.
_LOOK_AFTER_SECONDS = 0.1
# Private names of psycopg: where a release renames one, all goes its own way.
_GENERATORS = ("_commit_gen", "_rollback_gen", "_set_autocommit_gen")


async def run(function: Callable[[], T]) -> T:
    """Return what a function returns that may use SQLAlchemy's ``await_``, as ``greenlet_spawn`` does.

    Raise what it raises.
    """
    greenlets = _kept().greenlets
    worker = greenlets.pop() if greenlets else _Worker(_serve)
    current = getcurrent()
    try:
        worker.parent = current
    except ValueError:  # It began in another thread, which the loop ran in before, and stays there.
        worker = _Worker(_serve)
    worker.gr_context = current.gr_context
    if not worker:  # Begun without a function, because it holds for ever what it is begun with.
        worker.switch()
    returned: list[T] = []
    said = worker.switch(function, returned)
    while said is not _SERVED:
        try:
            answer = await said
        except BaseException as error:
            said = worker.throw(type(error), error, error.__traceback__)
        else:
            said = worker.switch(answer)
    worker.gr_context = None
    if len(greenlets) < _KEPT_GREENLETS:
        greenlets.append(worker)
    return returned[0]


class _Worker(greenlet):
    """A greenlet that runs one function after another, and dies of the first that raises."""

    __sqlalchemy_greenlet_provider__ = True  # what `await_` looks for


_SERVED = object()


def _serve() -> None:
    # It may be kept for long with nothing to do, and holds nothing then: least of all itself, since the garbage
    # collector does not look into greenlets.
    while True:
        function, returned = getcurrent().parent.switch(_SERVED)  # type: ignore[union-attr]
        returned.append(function())
        del function, returned


class Connection(AsyncAdapt_psycopg_connection):
    """SQLAlchemy's connection for tasks, whose round trips are waited for here."""

    __slots__ = ()

    def cursor(self, name: Any = None, /) -> Any:
        """Return a cursor, one of the server's if it has a name."""
        return super().cursor(name) if name else _Cursor(self)  # type: ignore[no-untyped-call]

    def commit(self) -> None:
        """Commit, if there is anything."""
        self.wait(self._connection._commit_gen())

    def rollback(self) -> None:
        """Roll back, if there is anything: SQLAlchemy asks for it after each commit as well."""
        if self._connection.pgconn.transaction_status != TransactionStatus.IDLE:
            self.wait(self._connection._rollback_gen())

    def set_autocommit(self, value: bool) -> None:
        """Have each statement be a transaction by itself, or not."""
        self.wait(self._connection._set_autocommit_gen(value))

    def wait(self, generator: PQGen[Any]) -> Any:
        """Return what a generator of psycopg's returns that talks to the server."""
        lock = self._connection.lock
        await_(lock.acquire())
        try:
            return _wait(self._connection, generator)
        except psycopg.Error as error:
            raise error.with_traceback(None) from None  # As psycopg does: the frames hold parameters.
        finally:
            lock.release()


class _Cursor(AsyncAdapt_psycopg_cursor):
    __slots__ = ()

    def _aenter_cursor(self, cursor: Any) -> Any:
        return cursor  # There is nothing to enter.

    def execute(self, operation: Any, parameters: Any = None) -> None:
        cursor: Any = self._cursor
        connection: Any = self._adapt_connection
        connection.wait(cursor._execute_gen(operation, parameters, prepare=None, binary=None))
        if cursor.pgresult and cursor.pgresult.status == ExecStatus.TUPLES_OK:
            self._rows = deque(await_(cursor.fetchall()))


def connected(connection: Any) -> Any:
    """Return a connection that waits here in the place of SQLAlchemy's, if system and psycopg have what that takes."""
    driver = connection.driver_connection
    if hasattr(select, "epoll") and all(hasattr(driver, name) for name in _GENERATORS):
        return Connection(connection.dbapi, driver)
    return connection


def _wait(connection: psycopg.AsyncConnection[Any], generator: PQGen[Any]) -> Any:
    try:
        state = next(generator)
        while state == WAIT_R:
            try:
                _kept().readable(connection.pgconn.socket)
                if connection.closed:  # By another task. The generator would read memory that is libpq's no more.
                    raise psycopg.OperationalError("the connection was closed while a statement was under way")
            except OSError:
                break  # The system has no room for one more; the loop's selector may.
            except BaseException as error:
                if connection.closed:
                    raise  # There is no statement to end any more.
                # A task that is cancelled, most of all: psycopg ends the statement then, and hears it out.
                return _go_on(connection, _Rest(generator, state, error))
            state = generator.send(READY_R)
    except StopIteration as end:
        return end.value
    # Most of all a statement that is too long to be sent at once.
    return _go_on(connection, _Rest(generator, state, None))


def _go_on(connection: psycopg.AsyncConnection[Any], rest: Any) -> Any:
    return await_(connection.wait(rest))


class _Rest:
    """A generator that has begun as one that has not; where somebody was interrupted, it begins with that."""

    def __init__(self, generator: PQGen[Any], state: Wait, error: BaseException | None) -> None:
        self._generator = generator
        self._state = state
        self._error = error

    def __next__(self) -> Wait:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._state

    def send(self, ready: Ready) -> Wait:
        return self._generator.send(ready)


class _Loop:
    """What is kept for an event loop."""

    def __init__(self) -> None:
        # The loop must not be held here, nor by what it calls: it would never be forgotten.
        self.greenlets: list[_Worker] = []
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._poll: select.epoll | None = None
        self._looks = False  # Whether it is to look at those who wait.

    def readable(self, descriptor: int) -> None:
        """Give way to the loop until there is something to read; perhaps a bit too early.

        Raise `OSError` if the system has no room for what that takes. Only where there is ``epoll``: it lets a socket
        be known once and asked for again with one call, and is a descriptor itself.
        """
        loop = asyncio.get_running_loop()
        if self._poll is None:
            self._poll = select.epoll()
            # In a context of its own, not for ever in that of the task that came first.
            Context().run(loop.add_reader, self._poll.fileno(), self._wake, self._poll)
        if descriptor in self._waiting:
            # The number of a connection that somebody closed while another task waited for its answer.
            self._tell(descriptor)
        self._waiting[descriptor] = future = loop.create_future()
        if not self._looks:
            self._looks = True
            loop.call_later(_LOOK_AFTER_SECONDS, self._look, context=Context())
        once = select.EPOLLIN | select.EPOLLONESHOT
        try:
            try:
                self._poll.modify(descriptor, once)
            except FileNotFoundError:  # New, or the number of one that was closed.
                self._poll.register(descriptor, once)
            await_(future)
        finally:
            if self._waiting.get(descriptor) is future:
                del self._waiting[descriptor]

    def _wake(self, poll: select.epoll) -> None:
        for descriptor, _ in poll.poll(0):
            self._tell(descriptor)

    def _look(self) -> None:
        # A connection that another task closes says nothing: whoever waits for it finds out when he looks.
        self._looks = False
        for descriptor in self._waiting:
            self._tell(descriptor)

    def _tell(self, descriptor: int) -> None:
        future = self._waiting.get(descriptor)
        if future is not None and not future.done():
            future.set_result(None)


# One for each event loop, as the loop has one selector. It goes with the loop.
_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()


def _kept() -> _Loop:
    loop = asyncio.get_running_loop()
    kept = _loops.get(loop)
    if kept is None:
        kept = _loops[loop] = _Loop()
    return kept
