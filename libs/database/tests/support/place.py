"""A database on a second server, with a network before it that can fail, and a look at what clients left there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

import proxy
import psycopg
import second
from proxy import Proxy
from second import Second
from worlds import World

APPLICATION = "app"
_SECONDS = 20.0


@dataclass
class Place:
    """Where an application's database is, seen by its administrator."""

    server: Second
    database: str
    network: Proxy

    def url(self, **parameters: str) -> str:
        """Return the application's URL, through the network that can fail."""
        return self._url(self.network.port, parameters)

    def direct(self, **parameters: str) -> str:
        """Return the application's URL past that network."""
        return self._url(self.server.port, parameters)

    def _url(self, port: int, parameters: dict[str, str]) -> str:
        query = f"?{urlencode(parameters)}" if parameters else ""
        return f"postgresql://{APPLICATION}:{APPLICATION}@127.0.0.1:{port}/{self.database}{query}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, asked past the network."""
        try:
            done = self._administrator.execute(query.encode())
        except psycopg.OperationalError:  # The server has been restarted.
            del self._administrator
            done = self._administrator.execute(query.encode())
        return done.fetchall() if done.description else []

    @cached_property
    def _administrator(self) -> psycopg.Connection[tuple[Any, ...]]:
        url = self.server.url(self.database)
        return psycopg.connect(url, autocommit=True, prepare_threshold=None, client_encoding="utf8")

    def close(self) -> None:
        """Let go of the database."""
        self._administrator.close()

    def notes(self) -> list[str]:
        """Return what is in the table of notes."""
        return [text for (text,) in self.rows("SELECT text FROM notes ORDER BY text")]

    def backends(self, state: str = "") -> list[int]:
        """Return the pids of the application's backends, those in one state if one is named."""
        chosen = f"AND state LIKE '{state}'" if state else ""
        query = f"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = '{APPLICATION}'"
        return [pid for (pid,) in self.rows(f"{query} {chosen}")]

    def sleeping(self) -> list[int]:
        """Return the pids of the application's backends that are at work on a pg_sleep."""
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
        return [pid for (pid,) in self.rows(f"{query} AND usename = '{APPLICATION}' AND query LIKE '%pg_sleep%'")]

    def kill(self, backends: Iterable[int]) -> None:
        """Terminate backends, and return when they are gone and what they said has passed the network."""
        before = self.network.connections
        ended = [self.rows(f"SELECT pg_terminate_backend({pid}, 10000)") for pid in backends]
        assert ended == [[(True,)]] * len(ended)
        deadline = time.monotonic() + _SECONDS
        while self.network.connections > before - len(ended) and before:
            assert time.monotonic() < deadline, "the network keeps what the server has ended"

    def until_left(self) -> None:
        """Return when the application has no backend any more: a leaked connection would keep one."""
        deadline = time.monotonic() + _SECONDS
        while left := self.backends():
            assert time.monotonic() < deadline, f"backends are left: {left}"


@contextmanager
def server(**settings: object) -> Iterator[Second]:
    """Yield a server with a role for applications, which takes none of the connections kept for its administrator."""
    with second.running(settings=settings) as running:
        with psycopg.connect(running.url(), autocommit=True) as connection:
            # Hundreds of connections are made; a password of this length is not guessed slower by counting to 4096.
            connection.execute("SET scram_iterations = 1")
            connection.execute(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{APPLICATION}'".encode())
        yield running


@contextmanager
def made(running: Second) -> Iterator[Place]:
    """Yield a database with a table of notes; afterwards no connection to it is left."""
    name = f"faults_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER {APPLICATION}".encode())
    with proxy.running(running.port) as network:
        place = Place(running, name, network)
        place.rows(f"CREATE TABLE notes (text text NOT NULL); ALTER TABLE notes OWNER TO {APPLICATION}")
        yield place
        network.resume()
        place.until_left()
        place.close()
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}".encode())


@contextmanager
def held(world: World, database: Any, number: int) -> Iterator[list[int]]:
    """Hold that many transactions open at once, each in a thread or task of its own; yield their backends' pids."""
    begun: list[int] = []
    let_go: list[bool] = []

    def hold() -> None:
        with database.transaction() as connection:
            begun.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
            world.until(lambda: bool(let_go))

    works = [world.start(hold) for _ in range(number)]
    try:
        world.until(lambda: len(begun) == number or any(work.done for work in works))
        yield begun
    finally:
        let_go.append(True)
        for work in works:
            work.result()


def assert_whole(world: World, place: Place, database: Any) -> None:
    """Assert that nothing is in use, nobody waits, no transaction is open, and all of the pool can be had at once."""
    state = database.pool
    assert (state.in_use, state.waiting) == (0, 0), state
    world.until(lambda: not place.backends("%transaction%") and not place.backends("active"))
    with held(world, database, state.size) as backends:
        assert len(set(backends)) == state.size
    assert database.pool.in_use == 0
    assert set(place.backends()) == set(backends)
