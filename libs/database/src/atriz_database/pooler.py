"""Connection poolers: whether one stands between us and the server, and whether it leaves us a session."""

from __future__ import annotations

import select
import time

import psycopg
from psycopg import pq

from atriz_database import databases, settings
from atriz_database.databases import Connection
from atriz_database.errors import ServerError, SettingsError
from atriz_database.settings import Target

_ROUNDS = 8
_WAIT_SECONDS = 10.0


def backend(target: Target, connection: Connection) -> int:
    """Return the pid of the backend that answers on `connection`, the same for as long as the connection is open.

    For a connection that another backend answers on than it was told when it was made. A server tells a client the
    backend's own pid; a pooler tells something it made up, because no backend is the client's yet. In session mode
    the client then keeps its first one. In transaction and statement mode it has one for a transaction only: locks
    and settings stay behind with it, and become somebody else's.

    No pooler says which mode it is in, so a second connection is made, and the two are asked in turn who answers. In
    session mode each has one backend, and they are two. In transaction mode that does not last:

    - On a quiet pool the backend that was given back last is handed out first, so that both are answered by one. With
      ``server_round_robin`` it is handed out last, and who asks twice is answered by two.
    - On a busy pool each question goes to whichever of n backends is free at the moment. With n = 1 both are answered
      by it; with n = 2, the worst case, 8 rounds of two questions each look like two sessions with a chance of one in
      2**31.

    Raise `SettingsError` if the connection has no backend of its own, and `ServerError` if the pooler has none for a
    second connection, which a run could not do without either.
    """
    with databases.connect(target, purpose="pooler") as other:
        ours, theirs = _ask(target, connection), _ask(target, other)
        for _ in range(_ROUNDS):
            # Twice each: two backends that are handed out in turn would look like two sessions.
            answers = [_ask(target, asked) for asked in (connection, connection, other, other)]
            if ours == theirs or answers != [ours, ours, theirs, theirs]:
                raise SettingsError(
                    f"{target.database} at {target.url} (from {target.origin}) is behind a connection pooler in "
                    "transaction mode, where the lock and SET do not survive: each transaction gets whichever of the "
                    f"server's connections is free. {_advice(target)}"
                )
    return ours


def _ask(target: Target, connection: Connection) -> int:
    """Return the pid of the backend that answers now."""
    # libpq itself, because a pooler without a free backend lets a question wait, and psycopg would wait with it; and
    # because psycopg would prepare the sixth question, which in transaction mode the next backend does not know.
    pgconn = connection.pgconn
    pgconn.send_query(b"SELECT pg_backend_pid()")
    deadline = time.monotonic() + _WAIT_SECONDS
    while pgconn.is_busy():
        if not select.select([pgconn.socket], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise ServerError(
                f"The connection pooler of {target.database} at {target.url} (from {target.origin}) had no connection "
                f"to the server for {_WAIT_SECONDS:g} s, and a run needs two. {_advice(target)}"
            )
        pgconn.consume_input()
    answer = None
    while (result := pgconn.get_result()) is not None:
        answer = result
    if answer is None or answer.status != pq.ExecStatus.TUPLES_OK:
        said = "" if answer is None else answer.error_message.decode(errors="replace").strip()
        raise psycopg.OperationalError(said or "the connection pooler gave no answer")
    return int(answer.get_value(0, 0) or 0)


def _advice(target: Target) -> str:
    plain = target.package.variable
    return (
        f"Give administration a URL past the pooler, in {settings.direct_variable(target)}; applications keep {plain}."
    )
