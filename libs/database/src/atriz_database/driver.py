"""psycopg's connection, which waits in other threads than the main one without the interpreter."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, pq
from psycopg._preparing import Prepare
from psycopg.abc import Params, PQGen, QueryNoTemplate
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq.abc import PGresult

if TYPE_CHECKING:
    from typing import Self

_AT_REST = (pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
# Private names of psycopg: where a release renames one, all goes its own way.
_OF_CONNECTIONS = ("_num_transactions", "_tpc", "_pipeline", "_prepared", "_get_tx_start_command")
_OF_CURSORS = (
    *("_convert_query", "_get_prepared", "_maybe_prepare_gen", "_set_results"),
    *("_reset", "_tx", "_last_query"),
)
_OF_STATEMENTS = ("maybe_add_to_cache", "maintain_gen", "_to_flush")
# As libpq writes what a server said: the severity, in whatever language, and two spaces. Its own words never begin so.
_SERVERS_WORD = re.compile(rb"[^\s:]+: {2}")


class ServerEndedError(psycopg.OperationalError):
    """The server itself said why it ended the connection, and so it rolled back."""


class Connection(psycopg.Connection[Any]):
    """A connection for the pool of a program with threads.

    psycopg sends, waits and receives in three calls, and holds Python's interpreter lock in the first and the last, so
    that a signal can come in while it waits. libpq's own calls do all three with the lock let go. Under 64 threads,
    which all want it, that is 30 % of what a transaction takes. The main thread, which signals come to, keeps psycopg's
    way, and so do statements that are not prepared yet.
    """

    answered = 0.0
    """When the server last answered in libpq's way, by `time.monotonic`."""
    _kept: psycopg.Cursor[Any] | None = None
    _asked = 0
    """How often somebody has asked for the adapters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_known = (
            all(hasattr(self, name) for name in _OF_CONNECTIONS)
            and all(hasattr(Cursor, name) for name in _OF_CURSORS)
            and all(hasattr(self._prepared, name) for name in _OF_STATEMENTS)
        )
        if self._is_known:
            self.cursor_factory = Cursor

    @property
    def adapters(self) -> AdaptersMap:
        """How types are read and written. Whoever asks may change it, and a cursor that is there would not hear."""
        self._kept = None
        self._asked += 1
        return super().adapters

    def take_cursor(self) -> psycopg.Cursor[Any]:
        """Return a cursor for one statement: the one that was given back last, if nobody has it.

        To make one takes longer than to begin SQLAlchemy's transaction.
        """
        cursor, self._kept = self._kept, None
        if cursor is None or cursor.row_factory is not self.row_factory:
            cursor = self.cursor()
            if isinstance(cursor, Cursor):
                cursor.made = self._asked
        return cursor

    def give_cursor(self, cursor: psycopg.Cursor[Any]) -> None:
        """Take a cursor back that has done its work, and have it forget the statement, its parameters and its answer.

        How it reads and writes values as well: the time zone, the form of dates or the encoding may be others by then.
        """
        if isinstance(cursor, Cursor) and cursor.made == self._asked:
            cursor._reset()
            cursor._tx.set_pgresult(None)
            cursor._last_query = None
            self._kept = cursor

    def close(self) -> None:
        """Close the connection; without a cursor of its own it is freed with the last reference."""
        self._kept = None
        super().close()

    def commit(self) -> None:
        """Commit, by psycopg's way where it would refuse to."""
        if not self.may_block or self._num_transactions or self._tpc:
            super().commit()
        elif self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            with self.lock:
                self.answer(self.pgconn.exec_(b"COMMIT"))

    def rollback(self) -> None:
        """Roll back, if there is anything: SQLAlchemy asks for it after each commit as well."""
        if self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            super().rollback()

    def _exec_command(
        self, command: QueryNoTemplate, result_format: pq.Format = pq.Format.TEXT
    ) -> PQGen[PGresult | None]:
        if isinstance(command, bytes) and self.may_block:
            return self.answer(self.pgconn.exec_(command))
        return (yield from super()._exec_command(command, result_format))

    @property
    def may_block(self) -> bool:
        """Whether this thread may wait in libpq."""
        return (
            self._is_known
            and threading.current_thread() is not threading.main_thread()
            # Where a COPY is under way, for example, libpq would end it.
            and self.pgconn.transaction_status in _AT_REST
            and not self._pipeline
        )

    def answer(self, result: PGresult) -> PGresult:
        """Return what libpq has brought, if it is no error."""
        if self.pgconn.status == pq.ConnStatus.BAD:
            # All that was said since, by the server and by libpq: of the results only the last one is left.
            is_servers = _SERVERS_WORD.match(self.pgconn.error_message)
            raise (ServerEndedError if is_servers else psycopg.OperationalError)(self.pgconn.get_error_message())
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result, encoding=self.pgconn._encoding)
        self.answered = time.monotonic()
        return result


class Cursor(psycopg.Cursor[Any]):
    """A cursor of such a connection."""

    made = 0
    """How often the adapters had been asked for when it was made: since then somebody may have changed them."""

    def execute(
        self, query: Any, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Run a statement: one that is prepared in libpq, any other by psycopg's way."""
        connection: Any = self._conn
        if prepare is None and binary is None and not self.closed:
            try:
                with connection.lock:
                    if connection.may_block:
                        self._execute(connection, query, params)
                        return self
            except psycopg.Error as error:
                raise error.with_traceback(None)  # noqa: B904 -- as psycopg does: the frames hold parameters
        return super().execute(query, params, prepare=prepare, binary=binary)

    def _execute(self, connection: Any, query: Any, params: Params | None) -> None:
        # As psycopg's `_execute_gen` does, without its generators.
        self._reset()
        if not self._last_query or self._last_query is not query:
            self._last_query = None
            self._tx = Transformer(self)
        pgconn, known = connection.pgconn, connection._prepared
        if pgconn.transaction_status == pq.TransactionStatus.IDLE and not connection.autocommit:
            connection.answer(pgconn.exec_(connection._get_tx_start_command()))
        statement = self._convert_query(query, params)
        is_prepared, name = self._get_prepared(statement)
        if is_prepared is Prepare.YES and not known._to_flush:
            formats = {"param_formats": statement.formats, "result_format": self.format}
            result = pgconn.exec_prepared(name, statement.params, **formats)
            known.maybe_add_to_cache(statement, is_prepared, name)
            self._set_results([connection.answer(result)])
        else:
            connection.wait(self._maybe_prepare_gen(statement))
            connection.wait(known.maintain_gen(connection))
        self._last_query = query
