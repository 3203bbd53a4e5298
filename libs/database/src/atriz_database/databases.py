"""Connections for administration, and databases as wholes: whether one is there, how it is made."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import errors, pq, sql
from psycopg.conninfo import make_conninfo

from atriz_database import interrupt, libpq
from atriz_database.errors import DatabaseMissingError, ServerError, ServerUnreachableError, SettingsError
from atriz_database.settings import EMBEDDED, Target
from atriz_database.url import DatabaseURL

OLDEST_VERSION = 12
_MAINTENANCE = ("postgres", "template1")
_POLL_SECONDS = 0.2
# Whoever has closed a connection is shown until the server's process for it has ended, which a busy machine delays.
_LEAVING_SECONDS, _LEAVING_POLL_SECONDS = 1.0, 0.05
# What is left of a database whose DROP was cut off: PostgreSQL lets nobody in, and only takes another DROP.
_INVALID = "SELECT FROM pg_database WHERE datname = %s AND datconnlimit = -2"

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(target: Target, *, purpose: str = "", wait: float = 0.0) -> Connection:
    """Return a connection to the database, in autocommit.

    :param purpose: the verb, which the server shows beside the connection.
    :param wait: for how many seconds to try again while the server is down.

    Raise `ServerUnreachableError` if no server answers, `DatabaseMissingError` if it has no such database, and
    `ServerError` if it refuses, or is older than PostgreSQL 12.
    """
    deadline = time.monotonic() + wait
    seen = False
    while True:
        try:
            connection = psycopg.connect(**parameters(target, purpose), autocommit=True)
        except psycopg.ProgrammingError as error:
            raise SettingsError(f"{target.origin} has a part that libpq does not take: {said(error)}.") from None
        except psycopg.OperationalError as error:
            answer = _ping(target)
            if answer in (pq.Ping.NO_RESPONSE, pq.Ping.REJECT) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            there = _is_there(target) if answer == pq.Ping.OK else None
            if there and not seen:
                # Refused, and yet it is there: somebody may have made it between the two questions.
                seen = True
                continue
            raise _explained(target, error, answer, there, wait) from None
        version = connection.info.server_version // 10000
        if version < OLDEST_VERSION:
            connection.close()
            raise ServerError(
                f"{target.database} is on PostgreSQL {version} ({target.url}); PostgreSQL {OLDEST_VERSION} or newer "
                "is needed. Upgrade the server or name another one."
            )
        return connection


def parameters(target: Target, purpose: str = "") -> dict[str, Any]:
    """Return what `psycopg.connect` needs to reach `target` and no other server."""
    if target.url is None:
        raise ServerError(f"{target.database} is on the embedded server, which has not been started.")
    url = target.url
    if target.origin == EMBEDDED:
        url = DatabaseURL({**libpq.known(libpq.PLAIN), **url.parameters})
    name = f"atriz {purpose} {target.package.name} ({socket.gethostname()}:{os.getpid()})".replace("  ", " ")
    return dict(libpq.parameters(url, name))


def maintenance(target: Target, *, purpose: str = "", wait: float = 0.0) -> Connection:
    """Return a connection, in autocommit, to a database that is always there on the target's server.

    Raise what :func:`connect` raises.
    """
    url = target.url
    assert url is not None, "a target on the embedded server is given its URL first"
    for name in _MAINTENANCE[:-1]:
        try:
            return connect(replace(target, url=url.with_database(name)), purpose=purpose, wait=wait)
        except DatabaseMissingError:
            continue
    return connect(replace(target, url=url.with_database(_MAINTENANCE[-1])), purpose=purpose, wait=wait)


def exists(target: Target, *, wait: float = 0.0) -> bool:
    """Return whether the server has the database.

    Raise what :func:`connect` raises.
    """
    try:
        connect(target, purpose="look", wait=wait).close()
    except DatabaseMissingError:
        return False
    return True


def create(target: Target, *, wait: float = 0.0) -> bool:
    """Make the database, in UTF-8. Return whether this call made it: already there is a result.

    Raise what :func:`connect` raises, and `ServerError` if the role has no right to create databases.
    """
    if exists(target, wait=wait):
        return False
    name = sql.Identifier(target.database)
    with maintenance(target, purpose="create") as connection:
        try:
            if connection.execute(_INVALID, [target.database]).fetchone() is not None:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
            try:
                connection.execute(sql.SQL("CREATE DATABASE {} ENCODING 'UTF8'").format(name))
            except errors.InvalidParameterValue:
                # template1 has another encoding, as in a cluster made under LANG=C; template0 takes any.
                connection.execute(sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(name))
        except (errors.DuplicateDatabase, errors.UniqueViolation):
            # Somebody made it meanwhile: the second error is what a true race gives.
            return False
        except errors.InsufficientPrivilege:
            raise ServerError(
                f"{target.database} is missing, and role {connection.info.user} has no right to create databases "
                f"({target.url}, from {target.origin}). Let it (ALTER ROLE {connection.info.user} CREATEDB), or have "
                f"an administrator run: CREATE DATABASE {target.database} OWNER {connection.info.user} "
                "ENCODING 'UTF8' TEMPLATE template0"
            ) from None
        except psycopg.Error as error:
            raise ServerError(f"{target.database} could not be created ({target.url}): {said(error)}") from None
    return True


@dataclass(frozen=True, slots=True)
class Visitor:
    """A connection of somebody else."""

    pid: int
    user: str
    application: str
    host: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.application or 'no application name'}, {self.user} from {self.host})"


def drop(
    target: Target,
    *,
    force_connections: bool = False,
    wait: float = 0.0,
    ending: Callable[[Sequence[Visitor]], None] = lambda visitors: None,
) -> bool:
    """Remove the database. Return whether there was one: already gone is a result.

    :param force_connections: whether to end the connections that others have to it.
    :param ending: gets those connections before they are ended.

    Raise what :func:`connect` raises, and `ServerError` if others stay connected, who are named, or the role may not.
    """
    with maintenance(target, purpose="drop", wait=wait) as connection:
        query = "SELECT FROM pg_database WHERE datname = %s"
        if connection.execute(query, [target.database]).fetchone() is None:
            return False
        visitors = _visitors(connection, target.database)
        if not force_connections:
            deadline = time.monotonic() + _LEAVING_SECONDS
            while visitors and time.monotonic() < deadline:
                time.sleep(_LEAVING_POLL_SECONDS)
                visitors = _visitors(connection, target.database)
            if visitors:
                raise ServerError(
                    f"{target.database} is in use by {'; '.join(map(str, visitors))}. Let them end, or end them with "
                    "--force-connections."
                )
        elif visitors:
            ending(visitors)
        force = sql.SQL("")
        if force_connections and connection.info.server_version >= 130000:
            # Whoever comes between the look and this is ended as well.
            force = sql.SQL("WITH (FORCE)")
        else:
            # PostgreSQL 12 has no WITH (FORCE).
            for visitor in visitors:
                connection.execute("SELECT pg_terminate_backend(%s)", [visitor.pid])
        interrupt.stop_orphan()
        try:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} {}").format(sql.Identifier(target.database), force))
        except errors.ObjectInUse:
            now = "; ".join(map(str, _visitors(connection, target.database))) or "others"
            raise ServerError(f"{target.database} could not be dropped: it is in use by {now}. Try again.") from None
        except psycopg.Error as error:
            raise ServerError(f"{target.database} could not be dropped ({target.url}): {said(error)}.") from None
    return True


def _visitors(connection: Connection, name: str) -> list[Visitor]:
    rows = connection.execute(
        "SELECT pid, coalesce(usename, ''), application_name, coalesce(host(client_addr), 'this machine') "
        # Autovacuum is no user, and no hindrance: it goes when DROP asks it to.
        "FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY pid",
        [name],
    )
    return [Visitor(*row) for row in rows]


def _ping(target: Target) -> pq.Ping:
    return pq.Ping(pq.PGconn.ping(make_conninfo(**parameters(target)).encode()))


def _explained(
    target: Target, error: psycopg.OperationalError, answer: pq.Ping, there: bool | None, wait: float
) -> ServerError:
    """Return what a failed connection means; libpq gives no SQLSTATE, and its text may be in any language."""
    assert target.url is not None
    text = said(error)
    waited = f" for {wait:g} s" if wait else ""
    if answer == pq.Ping.NO_RESPONSE:
        return ServerUnreachableError(
            f"No server answers for {target.database} at {target.url}{waited} (from {target.origin}): {text}. Start "
            "the server, correct the setting, or wait longer with --wait SECONDS."
        )
    if answer == pq.Ping.REJECT:
        return ServerUnreachableError(
            f"The server of {target.database} at {target.url} accepts no connections{waited} (from {target.origin}): "
            f"{text}. Wait until it has started with --wait SECONDS."
        )
    if there is False:
        return DatabaseMissingError(
            f"{target.database} does not exist on the server at {target.url} (from {target.origin}). "
            f"Make it with `atriz create {target.package.name}`."
        )
    return ServerError(
        f"The server at {target.url} refused the connection (from {target.origin}): {text}. Correct the user, the "
        "password or the right to connect."
    )


def _is_there(target: Target) -> bool | None:
    """Return whether the server has the database, `None` where it lets nobody ask; half a one is none."""
    assert target.url is not None
    for name in _MAINTENANCE:
        if name == target.database:
            continue
        try:
            given = parameters(replace(target, url=target.url.with_database(name)), "look")
            with psycopg.connect(**given, autocommit=True) as connection:
                query = "SELECT 1 FROM pg_database WHERE datname = %s AND datconnlimit <> -2"
                return connection.execute(query, [target.database]).fetchone() is not None
        except psycopg.OperationalError:
            continue
    return None


def said(error: psycopg.Error) -> str:
    """Return what the server said in an error, on one line, without libpq's question whether there is a server."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " / ".join(line for line in lines if line and not line.endswith("?")).rstrip(".")


Notify = Callable[[str], None]
"""Gets one line about something that takes a while."""
