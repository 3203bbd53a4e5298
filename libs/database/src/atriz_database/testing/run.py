"""One process of a test run at work on a server: its connection for administration, and what is named after it.

Everything a run makes carries its id in the name, and for as long as the run lives it holds an advisory lock on that
id. So a later run can tell what a killed one has left from what is still in use, by one look and without a clock.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from atriz_database import databases
from atriz_database.databases import Connection
from atriz_database.settings import Target

_PREFIX = "atriz_test_"
# The checkout, the run, and the how manieth of the run.
_NAME = re.compile(rf"{_PREFIX}.*_(?P<checkout>[0-9a-f]{{6}})(?P<run>[0-9a-f]{{8}})_[0-9]+", re.DOTALL)
_ROLE = re.compile(f"({_NAME.pattern})_(owner|app|dependents)", re.DOTALL)
_LONGEST_NAME = 63
_EXIT_SECONDS = 0.002
_KEPT = re.compile(r"kept (?P<time>[0-9]+) for (?P<test>.*)", re.DOTALL)
_KEPT_SECONDS = 24 * 60 * 60
# Whoever a test has left behind is told to go, and DROP waits some seconds for them. WITH (FORCE) is not in PostgreSQL
# 12, and needs a right that this doesn't.
# Autovacuum, which is no user and takes a superuser to end, goes by itself when DROP asks it to.
_END = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = %s AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
"""
# The run's connection waits for others, and does nothing while a test runs: no limit of the server may end that.
_NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('idle_session_timeout', 'lock_timeout', 'statement_timeout', 'transaction_timeout')
"""
_DATABASES = """
    SELECT datname, coalesce(shobj_description(d.oid, 'pg_database'), ''), extract(epoch FROM now())::bigint,
           EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)
    FROM pg_database d WHERE starts_with(datname, %s) AND NOT datistemplate ORDER BY datname
"""
_ROLES = "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)"
_HELD = """
    SELECT (classid::bigint << 32) + objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Run:
    """A process of a test run, on one server.

    Its one connection serves everything, and is opened again if a test has had it ended. Close it when the run ends.
    """

    def __init__(self, server: Target, root: Path) -> None:
        """Begin.

        :param server: a target on the server; which database it names doesn't matter.
        :param root: the workspace's folder, which tells this checkout's databases from others'.
        """
        self.server = server
        self.checkout = hashlib.sha256(f"{socket.gethostname()}\n{root}".encode()).hexdigest()[:6]
        self.id = secrets.token_hex(4)
        self._held = [key(self.id)]
        self._numbers = count(1)
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The run's connection, in autocommit, to a database that is always there."""
        if self._connection is None or self._connection.closed:
            self._connection = databases.maintenance(self.server, purpose="test")
            self._connection.execute(_NO_LIMITS)
            for each in self._held:
                self._connection.execute("SELECT pg_advisory_lock_shared(%s)", [each])
        return self._connection

    def execute(self, statement: sql.Composed) -> None:
        """Run a statement about databases, which can be tried once more if the connection turns out to be gone."""
        try:
            self.connection.execute(statement)
        except psycopg.OperationalError:
            if self._connection is not None and not self._connection.closed:
                raise
            self.connection.execute(statement)

    def hold(self, name: str) -> None:
        """Keep others from dropping what `name` means, until the run ends. Waits for whoever is making it."""
        self.connection.execute("SELECT pg_advisory_lock_shared(%s)", [key(name)])
        self._held.append(key(name))

    def let_go(self, name: str) -> None:
        """Undo one :meth:`hold`."""
        self._held.remove(key(name))
        self.connection.execute("SELECT pg_advisory_unlock_shared(%s)", [key(name)])

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep everybody else from using what `name` means, while the block runs. Waits until nobody uses it."""
        self.connection.execute("SELECT pg_advisory_lock(%s)", [key(name)])
        try:
            yield
        finally:
            with suppress(psycopg.Error):  # What ended the connection has ended the lock as well.
                self.connection.execute("SELECT pg_advisory_unlock(%s)", [key(name)])

    @contextmanager
    def alone_now(self, name: str) -> Iterator[bool]:
        """Do as :meth:`alone`, and yield false at once where somebody uses it, this run included."""
        # The server would let the run in beside itself.
        query = "SELECT NOT %s AND pg_try_advisory_lock(%s)"
        is_alone = self.connection.execute(query, [key(name) in self._held, key(name)]).fetchone() == (True,)
        try:
            yield is_alone
        finally:
            if is_alone:
                self.connection.execute("SELECT pg_advisory_unlock(%s)", [key(name)])

    def new_name(self, package: str) -> str:
        """Return a name for a database of this run; whatever has it is dropped by a later run, if not by this one."""
        suffix = f"_{self.checkout}{self.id}_{next(self._numbers)}"
        room = _LONGEST_NAME - len(_PREFIX) - len(suffix)
        return _PREFIX + package.encode()[:room].decode(errors="ignore") + suffix

    def target(self, template: Target, name: str) -> Target:
        """Return the target of another database on the server, of the same package as `template`."""
        assert self.server.url is not None, "a target on the embedded server is given its URL first"
        return replace(template, url=self.server.url.with_database(name))

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.connection.execute(_END, [name])
        # A server process that ends is out of the list a moment before DROP stops counting it, and where DROP still
        # finds one it looks again after 100 ms.
        time.sleep(_EXIT_SECONDS)
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))

    def keep(self, name: str, test: str) -> None:
        """Mark a database as kept for a test that failed."""
        row = self.connection.execute("SELECT extract(epoch FROM now())::bigint").fetchone()
        assert row is not None, "a SELECT without FROM has one row"
        comment = sql.SQL("COMMENT ON DATABASE {} IS {}")
        self.execute(comment.format(sql.Identifier(name), sql.Literal(f"kept {row[0]} for {test}")))

    def sweep(self) -> list[str]:
        """Drop what runs have left that are no more, roles too. Return the tests whose kept databases were among it.

        What was kept for a failed test goes when a later run of the same checkout comes by, or any run after a day;
        never while somebody is connected to it.
        """
        rows = self.connection.execute(_DATABASES, [_PREFIX]).fetchall()
        # After the names: whoever has a database has had its lock before.
        held = {row[0] for row in self.connection.execute(_HELD)}
        told = []
        for name, comment, now, is_used in rows:
            match = _NAME.fullmatch(name)
            if match is None or key(match["run"]) in held:
                continue
            kept = _KEPT.fullmatch(comment)
            if kept is not None:
                is_mine = match["checkout"] == self.checkout
                if is_used or not (is_mine or now - int(kept["time"]) > _KEPT_SECONDS):
                    continue
            # Another role's, or dropped by another run meanwhile: somebody else's business.
            with suppress(psycopg.Error):
                self.drop(name)
                if kept is not None:
                    told.append(kept["test"])
        for (role,) in self.connection.execute(_ROLES, [_PREFIX]).fetchall():
            match = _ROLE.fullmatch(role)
            # What `grant` has named after a database; as long as that is there the server keeps them.
            if match is not None and key(match["run"]) not in held:
                with suppress(psycopg.Error):
                    self.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
        return told

    def close(self) -> None:
        """End: the locks go with the connection."""
        if self._connection is not None:
            self._connection.close()


def has_kept(connection: Connection) -> bool:
    """Return whether the server has a database that is kept for a failed test."""
    return any(_KEPT.fullmatch(row[1]) for row in connection.execute(_DATABASES, [_PREFIX]))


def key(name: str) -> int:
    """Return the advisory lock's key for a name."""
    return int.from_bytes(hashlib.sha256(f"atriz test {name}".encode()).digest()[:8], "big", signed=True)
