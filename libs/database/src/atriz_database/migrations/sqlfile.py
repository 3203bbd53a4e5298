"""Revisions whose body is a plain SQL file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg

from atriz_database.errors import MigrationError, RevisionError
from atriz_database.migrations.explain import sql_message

_UP, _DOWN = "-- migrate:up", "-- migrate:down"


def sql_file(revision: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the upgrade and the downgrade of a revision whose body is the ``.sql`` file beside it.

    The file has two parts, begun by the lines ``-- migrate:up`` and ``-- migrate:down``. Each is sent as it stands,
    comments included, in the revision's transaction; nothing in it is a parameter::

        upgrade, downgrade = sql_file(__file__)

    Without the second part there is no way down: the downgrade raises `MigrationError`. With nothing in it, as with
    Python's ``pass``, there is nothing to undo.

    :param revision: the revision's own ``__file__``.

    Raise `RevisionError` if the file is missing or lacks the first part.
    """
    path = Path(revision).with_suffix(".sql")
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise RevisionError(f"{path}, the body of the revision beside it, cannot be read: {error}") from None
    marks = {line.strip().lower(): number for number, line in enumerate(lines)}
    end = marks.get(_DOWN, len(lines))
    if _UP not in marks or marks[_UP] > end:
        raise RevisionError(f"{path} needs a line `{_UP}`, and after it a line `{_DOWN}`, each followed by SQL.")
    up, down = marks[_UP] + 1, end + 1
    return (
        lambda: _run_script(path, "".join(lines[up:end]), up + 1),
        lambda: _run_script(path, "".join(lines[down:]), down + 1) if _DOWN in marks else _refuse(path),
    )


def _refuse(path: Path) -> None:
    raise MigrationError(
        f"{path} has no line `{_DOWN}`, and so no way down. Write one, or, where there can be none, say why in "
        f'{path.with_suffix(".py").name}: irreversible = "reason".'
    )


def _run_script(path: Path, text: str, first_line: int) -> None:
    from alembic import op

    migration = op.get_context()
    if migration.as_sql:
        migration.impl.static_output(text.strip())
        return
    connection = op.get_bind().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    try:
        # Without parameters psycopg sends the text as it is: many statements, and % and : are themselves.
        connection.execute(text.encode())
    except psycopg.Error as error:
        diagnostic = error.diag
        position = int(diagnostic.statement_position or 0)
        line = first_line + text.count("\n", 0, max(position - 1, 0))
        raise MigrationError(sql_message(f"{path}, line {line}", text, error, diagnostic)) from None
