"""Databases that live as long as a comparison."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace

import psycopg
from psycopg import sql

from atriz_database import databases, interrupt
from atriz_database.databases import Connection
from atriz_database.errors import ServerError
from atriz_database.settings import Target

_PREFIX = "atriz_scratch_"
# When it was made, in seconds since 1970 by the server's clock, and what no other has. The time is part of the name,
# and not a comment on the database, so that nobody can be killed between the two.
_NAME = re.compile(rf"{_PREFIX}.*_(?P<made>[0-9a-f]{{8}})[0-9a-f]{{8}}", re.DOTALL)
_LONGEST_NAME = 63
_STALE_SECONDS = 24 * 60 * 60


@contextlib.contextmanager
def scratch(target: Target, *, wait: float = 0.0) -> Iterator[Target]:
    """Make an empty database on the target's server, yield it, and drop it whatever happens.

    Those of killed runs that are older than a day are dropped as well. The server makes it as it makes the package's
    own, from template1, so that what stands in there doesn't tell the two apart.

    :param wait: for how many seconds to try again while the server is down.

    Raise what :func:`databases.connect` raises, and `ServerError` if the role may not create databases.
    """
    url = target.url
    assert url is not None, "a target on the embedded server is given its URL first"
    with databases.maintenance(target, purpose="scratch", wait=wait) as connection:
        _check_right(connection, target)
        name = _new_name(connection, target.package.name)
        for stale in _stale(connection):
            # In use after all, another role's, or gone meanwhile: each is somebody else's business.
            with contextlib.suppress(psycopg.Error):
                connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(stale)))
    origin = f"a scratch database beside {target.database}"
    made = replace(
        target,
        url=url.with_database(name),
        origin=origin,
        environment="test",
        environment_origin="the scratch database",
    )
    try:
        databases.create(made)
        yield made
        _drop(made)
    except BaseException:
        # What went wrong says more than that its database is left to a later run. A signal may come while it is being
        # dropped, and then this is the second try.
        with contextlib.suppress(ServerError), interrupt.blocked():
            _drop(made)
        raise


def _check_right(connection: Connection, target: Target) -> None:
    query = "SELECT rolcreatedb OR rolsuper, quote_ident(rolname) FROM pg_roles WHERE rolname = current_user"
    row = connection.execute(query).fetchone()
    if row is not None and not row[0]:
        raise ServerError(
            f"This takes a scratch database beside {target.database}, and role {row[1]} has no right to create "
            f"databases ({target.url}, from {target.origin}). Let it (ALTER ROLE {row[1]} CREATEDB), or name a server "
            "where it may."
        )


def _new_name(connection: Connection, package: str) -> str:
    row = connection.execute("SELECT to_hex(extract(epoch FROM now())::bigint)").fetchone()
    assert row is not None, "a SELECT without FROM has one row"
    suffix = f"_{row[0]:0>8}{secrets.token_hex(4)}"
    room = _LONGEST_NAME - len(_PREFIX) - len(suffix)
    return _PREFIX + package.encode()[:room].decode(errors="ignore") + suffix


def _stale(connection: Connection) -> list[str]:
    """Return the scratch databases that are too old for anybody to be at work in them, and in which nobody is."""
    query = """
        SELECT datname, extract(epoch FROM now())::bigint FROM pg_database d
        WHERE NOT datistemplate AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)
    """
    names = [(_NAME.fullmatch(name), now) for name, now in connection.execute(query)]
    return [match[0] for match, now in names if match and now - int(match["made"], 16) > _STALE_SECONDS]


def _drop(made: Target) -> None:
    with databases.maintenance(made, purpose="scratch") as connection:
        try:
            # Not WITH (FORCE), which PostgreSQL 12 lacks: DROP waits some seconds for those told to go.
            # Autovacuum, which is no user and takes a superuser to end, goes by itself when DROP asks it to.
            query = """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL
            """
            connection.execute(query, [made.database])
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(made.database)))
        except psycopg.Error as error:
            raise ServerError(
                f"{made.database}, {made.origin}, could not be dropped ({made.url}): {error}. A run after tomorrow "
                f'drops it, or `DROP DATABASE "{made.database}"` in psql.'
            ) from None
