"""What tasks wait with: greenlets that are kept, and one look at all the sockets of an event loop.

SQLAlchemy's and our own sync code runs for tasks in greenlets, which give way to the event loop wherever they wait: see
``docs/decisions/0013-sync-and-async.md``. SQLAlchemy makes a greenlet for each call, which takes a stack from the
system and gives it back, and has the loop's selector learn and forget a socket for each answer of the server. Both
together took longer than all the rest of a short transaction.
"""

from __future__ import annotations

import asyncio
import select
import sys
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import TypeVar

from greenlet import getcurrent, greenlet
from sqlalchemy.util import await_

T = TypeVar("T")

# Those beyond are given back: a moment in which thousands of tasks ask is not to hold their stacks for ever.
_KEPT_GREENLETS = 100
# How often those who wait look for themselves, in seconds: one timer for all, where psycopg has one for each answer.
_LOOK_AFTER_SECONDS = 0.1


async def run(function: Callable[[], T]) -> T:
    """Return what a function returns that may use SQLAlchemy's ``await_``, as ``greenlet_spawn`` does.

    Raise what it raises.
    """
    loop = _kept()
    greenlets = loop.greenlets
    worker = greenlets.pop() if greenlets else _Worker(_serve)
    current = getcurrent()
    try:
        worker.parent = current
    except ValueError:  # It began in another thread, which the loop ran in before, and stays there.
        worker = _Worker(_serve)
    worker.gr_context = current.gr_context
    worker.loop = loop
    if not worker:  # Begun without a function, because it holds for ever what it is begun with.
        worker.switch()
    returned: list[T] = []
    handled = sys.exception()
    try:
        said = worker.switch(function, returned)
        while said is not _SERVED:
            try:
                answer = await said
            except BaseException as error:
                said = worker.throw(type(error), error, error.__traceback__)
            else:
                said = worker.switch(answer)
    except BaseException as error:
        if handled is not None:
            _chain(error, handled)
        raise
    worker.gr_context = worker.loop = None
    if len(greenlets) < _KEPT_GREENLETS:
        greenlets.append(worker)
    return returned[0]


def _chain(error: BaseException, handled: BaseException) -> None:
    """Have an error tell what its caller was handling, which a greenlet does not see, as Python does elsewhere."""
    chain = _contexts(error)
    if not any(each in chain for each in _contexts(handled)):
        chain[-1].__context__ = handled


def _contexts(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (earlier := chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    return chain


def readable(descriptor: int) -> None:
    """Give way to the event loop until a socket has something to read; perhaps a bit too early. In a greenlet only.

    Raise `OSError` if the system has no room for what that takes.
    """
    # In a greenlet of SQLAlchemy's own it is not known.
    (getattr(getcurrent(), "loop", None) or _kept()).readable(descriptor)


class _Worker(greenlet):
    """A greenlet that runs one function after another, and dies of the first that raises."""

    __sqlalchemy_greenlet_provider__ = True  # what `await_` looks for
    loop: _Loop | None = None
    """Of the call that it serves."""


_SERVED = object()


def _serve() -> None:
    # It may be kept for long with nothing to do, and holds nothing then: least of all itself, since the garbage
    # collector does not look into greenlets.
    while True:
        function, returned = getcurrent().parent.switch(_SERVED)  # type: ignore[union-attr]
        returned.append(function())
        del function, returned


class _Loop:
    """What is kept for an event loop."""

    def __init__(self) -> None:
        # The loop must not be held here, nor by what it calls: it would never be forgotten.
        self.greenlets: list[_Worker] = []
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._poll: select.epoll | None = None
        self._looks = False  # Whether it is to look at those who wait.

    def readable(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        if self._poll is None:
            # It lets a socket be known once, and asked for again with one call. It is a descriptor itself.
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
