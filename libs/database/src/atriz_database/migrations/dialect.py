"""SQLAlchemy's dialect of PostgreSQL, told by the connection what it would else ask the server."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

ASK = "SELECT current_schema(), current_setting('transaction_isolation')"
"""What a connection knows before it is given to an engine; the rest libpq has heard from the server already."""


class Dialect(PGDialect_psycopg):
    """Begins without the six round trips that SQLAlchemy takes for an engine's first connection.

    A run has an engine for one connection, and with the server in another town they would be most of its time.
    """

    supports_statement_cache = True

    def _get_server_version_info(self, connection: Any) -> tuple[int, ...]:
        # As libpq counts since PostgreSQL 10: 160004 is 16.4.
        version: int = _driver(connection).info.server_version
        return divmod(version, 10_000)

    def _get_default_schema_name(self, connection: Any) -> Any:
        return _driver(connection).schema

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        """Return what the connection was told."""
        return dbapi_conn.isolation

    def _set_backslash_escapes(self, connection: Any) -> None:
        said = _driver(connection).pgconn.parameter_status(b"standard_conforming_strings")
        self._backslash_escapes = said == b"off"


def _driver(connection: Any) -> Any:
    return connection.connection.driver_connection


registry.register("postgresql.atriz", __name__, Dialect.__name__)
