"""Whether an error means that a database cannot be used for now, rather than that the code is wrong."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError

from atriz_database import databases
from atriz_database.errors import OutcomeUnknownError, PoolTimeoutError

ERRORS = (DBAPIError, OutcomeUnknownError, PoolTimeoutError)
"""What :func:`reason` knows of."""

# By the class of the SQLSTATE or the whole of it: the server ends or refuses connections.
_REFUSED = ("08", "28", "3D", "53", "57P")
# Of tables, columns, functions and schemas that are not there.
_BEHIND = ("42P01", "42703", "42883", "3F000")
_FORBIDDEN = "42501"


def reason(error: Exception, package: str = "") -> str | None:
    """Return why a database cannot be used, on one line without the parameters of a statement, and the next step.

    `None` where an error means something else.

    :param package: whose database it is, for the next step.
    """
    if isinstance(error, (OutcomeUnknownError, PoolTimeoutError)):
        return str(error)
    if not isinstance(error, DBAPIError) or not isinstance(error.orig, psycopg.Error):
        return None
    state, text = error.orig.sqlstate or "", error.orig.diag.message_primary or databases.said(error.orig)
    if state in _BEHIND:
        return f"the database is behind the code: {text}. Run `{f'atriz migrate {package}'.rstrip()}`."
    if state == _FORBIDDEN:
        return f"the role may not do what it has to: {text}. Run `{f'atriz grant {package}'.rstrip()}`."
    # Where there is no connection there is no state either.
    is_refused = state.startswith(_REFUSED) or (not state and isinstance(error.orig, psycopg.OperationalError))
    return f"the database cannot be used: {text}. `atriz status` shows where it should be." if is_refused else None
