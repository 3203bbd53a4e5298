"""One test for both worlds: `Database` in threads, `AsyncDatabase` in tasks.

A test's body is plain code. In the asynchronous world it runs in the greenlet of a task, and what the test calls is
awaited there, in that task and its context: SQLAlchemy's own `greenlet_spawn` and `await_only`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from atriz_database import AsyncDatabase, Database

SECONDS = 20.0
"""How long a test waits for what must come. What comes later is taken for a hang."""
_POLL_SECONDS = 0.005


class Work(Protocol):
    """A function at work in a thread or task of its own."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> Any:
        """Return what it returned, or raise what it raised."""

    def cancel(self) -> None:
        """Cancel the task; threads cannot be."""


class World:
    """`Database` and threads."""

    name = "sync"

    def __init__(self) -> None:
        self._databases: list[Any] = []

    def run(self, body: Callable[[], None]) -> None:
        """Run a test's body, and close what it opened."""
        try:
            body()
        finally:
            for database in self._databases:
                database.close()

    def open(self, url: str, **settings: Any) -> Any:
        """Return a database that is closed after the test."""
        self._databases.append(Database(url, **settings))
        return self._databases[-1]

    def start(self, function: Callable[[], Any]) -> Work:
        """Call a function in a thread of its own."""
        work = _Thread(function)
        work.start()
        return work

    def wait(self, event: threading.Event) -> None:
        """Return when an event is set."""
        assert event.wait(SECONDS), "it has not happened"

    def until(self, predicate: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Return when the predicate is true, asked again and again."""
        deadline = time.monotonic() + seconds
        while not predicate():
            assert time.monotonic() < deadline, "never true"
            self._pause()

    def driver(self, connection: Any) -> Any:
        """Return psycopg's connection beneath one of SQLAlchemy's."""
        return connection.connection.driver_connection

    def _pause(self) -> None:
        time.sleep(_POLL_SECONDS)


class _Thread(threading.Thread):
    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._future: Future[Any] = Future()

    def run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:
            self._future.set_exception(error)

    @property
    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        return self._future.result(SECONDS)

    def cancel(self) -> None:
        raise NotImplementedError("a thread cannot be cancelled")


class AsyncWorld(World):
    """`AsyncDatabase` and tasks."""

    name = "async"

    def run(self, body: Callable[[], None]) -> None:
        """Run a test's body in a task, and close what it opened."""
        asyncio.run(self._run(body))

    async def _run(self, body: Callable[[], None]) -> None:
        try:
            await greenlet_spawn(body)
        finally:
            for database in self._databases:
                await database._wrapped.close()

    def open(self, url: str, **settings: Any) -> Any:
        """Return a database that is closed after the test, each of its calls awaited."""
        self._databases.append(_Database(AsyncDatabase(url, **settings)))
        return self._databases[-1]

    def start(self, function: Callable[[], Any]) -> Work:
        """Call a function in a task of its own."""
        return _Task(asyncio.ensure_future(greenlet_spawn(function)))

    def wait(self, event: threading.Event) -> None:
        """Return when an event is set; other tasks go on."""
        assert await_only(asyncio.to_thread(event.wait, SECONDS)), "it has not happened"

    def driver(self, connection: Any) -> Any:
        """Return psycopg's connection beneath one of SQLAlchemy's."""
        return super().driver(connection.sync_connection)

    def _pause(self) -> None:
        await_only(asyncio.sleep(_POLL_SECONDS))


class _Task:
    def __init__(self, task: asyncio.Future[Any]) -> None:
        self._task = task

    @property
    def done(self) -> bool:
        return self._task.done()

    def result(self) -> Any:
        return await_only(asyncio.wait_for(self._task, SECONDS))

    def cancel(self) -> None:
        self._task.cancel()


class _Awaited:
    """What is awaited wherever it is called."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        if not callable(value):
            return value
        return lambda *arguments, **options: _awaited(value(*arguments, **options))


class _Database(_Awaited):
    def run(self, function: Callable[[Any], Any], **options: Any) -> Any:
        async def run(connection: AsyncConnection) -> Any:
            return await greenlet_spawn(function, _Awaited(connection))

        return await_only(self._wrapped.run(run, **options))


def _awaited(value: Any) -> Any:
    if hasattr(value, "__aenter__"):
        return _entered(value)
    return await_only(value) if inspect.isawaitable(value) else value


@contextmanager
def _entered(manager: Any) -> Iterator[Any]:
    value = await_only(manager.__aenter__())
    try:
        yield _Awaited(value) if isinstance(value, AsyncConnection | AsyncSession) else value
    except BaseException as error:
        if not await_only(manager.__aexit__(type(error), error, error.__traceback__)):
            raise
    else:
        await_only(manager.__aexit__(None, None, None))


def both(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in each world, which it gets as `world`."""
    return pytest.mark.parametrize("make", [World, AsyncWorld], ids=lambda make: make.name)(_in_world(test))


def in_tasks(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in the asynchronous world, for what only tasks can do."""
    return pytest.mark.parametrize("make", [AsyncWorld], ids=["async"])(_in_world(test))


def _in_world(test: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(make: Callable[[], World], **fixtures: Any) -> None:
        world = make()
        world.run(lambda: test(world=world, **fixtures))

    given = inspect.signature(test)
    parameters = [each for each in given.parameters.values() if each.name != "world"]
    make = inspect.Parameter("make", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = given.replace(parameters=[make, *parameters])  # type: ignore[attr-defined]
    return run
