"""psycopg's connection, with BEGIN, COMMIT and ROLLBACK that wait without the interpreter."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
from psycopg import errors, pq
from psycopg.abc import PQGen, QueryNoTemplate
from psycopg.pq.abc import PGresult

_AT_REST = (pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


class Connection(psycopg.Connection[Any]):
    """A connection for the pool of a program with threads.

    psycopg sends, waits and receives in three calls, and holds Python's interpreter lock in the first and the last, so
    that a signal can come in while it waits. libpq's own call for a statement without parameters does all three with
    the lock let go. Under 64 threads, which all want it, that is a fifth of what a transaction takes. The main thread,
    which signals come to, keeps psycopg's way.
    """

    def commit(self) -> None:
        """Commit, by psycopg's way where it would refuse to."""
        if self._num_transactions or self._tpc or not self._may_block():
            super().commit()
        elif self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            with self.lock:
                self._block(b"COMMIT")

    def rollback(self) -> None:
        """Roll back, if there is anything: SQLAlchemy asks for it after each commit as well."""
        if self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            super().rollback()

    def _exec_command(
        self, command: QueryNoTemplate, result_format: pq.Format = pq.Format.TEXT
    ) -> PQGen[PGresult | None]:
        if isinstance(command, bytes) and self._may_block():
            return self._block(command)
        return (yield from super()._exec_command(command, result_format))

    def _may_block(self) -> bool:
        return (
            threading.current_thread() is not threading.main_thread()
            # Where a COPY is under way, for example, libpq would end it.
            and self.pgconn.transaction_status in _AT_REST
            and not self._pipeline
        )

    def _block(self, command: bytes) -> PGresult:
        result = self.pgconn.exec_(command)
        if result.status == pq.ExecStatus.COMMAND_OK:
            return result
        if self.pgconn.status == pq.ConnStatus.BAD:
            # All that was said since, by the server and by libpq: of the results only the last one is left.
            raise psycopg.OperationalError(self.pgconn.get_error_message())
        raise errors.error_from_result(result, encoding=self.pgconn._encoding)
