"""What a failed revision means to the person who wrote it."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import psycopg
import sqlalchemy
from alembic.util import CommandError
from psycopg.errors import Diagnostic

from atriz_database import revisions, workspace
from atriz_database.errors import AtrizError, MigrationError

# What to do where the revision is not at fault, by SQLSTATE.
_ADVICE = {
    "25006": "nothing can be changed here: the server is a standby, or default_transaction_read_only is on for the "
    "database or the role. Name the primary, or take the setting away",
    "42501": "give the role the right, or run as the role that owns the tables",
    "53100": "the server's disk is full: make room there",
    "57P01": "the connection was ended by an administrator, or the server is being shut down",
}
_PASSWORD = re.compile(r"(\bPASSWORD\s+)(?:'(?:[^']|'')*'|\$(\w*)\$.*?\$\2\$)", re.IGNORECASE | re.DOTALL)


def versions_folder(package: workspace.Package) -> Path:
    """Return the folder of a package's revision files."""
    return package.folder / "migrations" / "versions"


@contextlib.contextmanager
def explaining(package: workspace.Package) -> Iterator[None]:
    """Turn what Alembic and the revision files raise into errors that a person can read."""
    try:
        yield
    except AtrizError:
        raise
    except CommandError as error:
        raise MigrationError(f"{package.name}: {error}") from None
    except Exception as error:
        raise explained(error, versions_folder(package)) from None


def explained(error: Exception | SystemExit, folder: Path, revision: Path | None = None) -> AtrizError:
    """Return what a failed revision means to the person who wrote it: file, line, and where in the statement.

    :param folder: where the revision files are.
    :param revision: the file of the one that was under way, for an error that comes from none of its lines.
    """
    told = error if isinstance(error, AtrizError) else _explained(error, folder, revision)
    notes = [f"    {note}" for note in getattr(error, "__notes__", ())]
    return type(told)("\n".join([str(told), *notes])) if notes else told


def _explained(error: Exception | SystemExit, folder: Path, revision: Path | None) -> AtrizError:
    if isinstance(error, SyntaxError) and error.filename:
        return revisions.syntax_error(Path(error.filename), error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if folder in Path(frame.filename).parents]
    place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(revision or folder)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and isinstance(error.orig, psycopg.Error):
        # SQLAlchemy has doubled the percent signs, which psycopg took back: the server counted them once.
        statement = (error.statement or "").replace("%%", "%")
        # One that was held is told with its own place, by whoever sent it.
        return MigrationError(sql_message(getattr(error, "place", place), statement, error.orig, error.orig.diag))
    if isinstance(error, psycopg.Error):
        return MigrationError(sql_message(place, "", error, error.diag))
    return MigrationError(f"{place}: {type(error).__name__}: {error}")


def without_passwords(statement: str) -> str:
    """Return a statement with stars for the passwords that it sets, its length kept."""
    return _PASSWORD.sub(lambda match: match[1] + "*" * (len(match[0]) - len(match[1])), statement)


def sql_message(place: str, statement: str, error: psycopg.Error, diagnostic: Diagnostic) -> str:
    """Return the server's message with the line of the statement it means and a caret below the place."""
    statement = without_passwords(statement)
    first = diagnostic.message_primary or str(error).strip()
    lines = [f"{place}: {first}" + (f" ({diagnostic.sqlstate})" if diagnostic.sqlstate else "")]
    if diagnostic.statement_position and statement:
        at = int(diagnostic.statement_position) - 1
        begin = statement.rfind("\n", 0, at) + 1
        line = statement[begin:].partition("\n")[0].rstrip()
        lines += [f"    {line}", "    " + "".join("\t" if c == "\t" else " " for c in line[: at - begin]) + "^"]
    elif statement:
        lines += [f"    {line.rstrip()}" for line in statement.strip().splitlines()[:3]]
    for name, text in (("detail", diagnostic.message_detail), ("hint", diagnostic.message_hint)):
        if text:
            lines.append(f"    {name}: {text}")
    if advice := _ADVICE.get(diagnostic.sqlstate or ""):
        lines.append(f"    {advice}")
    return "\n".join(lines)
