"""The template that a package's test databases are cloned from: migrated once, sealed, shared by all runs.

Its name holds a hash of all it is made from, so that a changed revision means another template. It is made under
another name, and gets its own when it is whole: what a killed run leaves is never taken for one.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psycopg
from psycopg import sql

from atriz_database import databases, label
from atriz_database.databases import Connection
from atriz_database.settings import Target
from atriz_database.testing.run import Run
from atriz_database.workspace import Package

_PREFIX = "atriz_template_"
_LONGEST_PACKAGE = 63 - len(_PREFIX) - len("_0123456789ab_unfinished")
_IS_SEALED = "SELECT FROM pg_database WHERE datname = %s AND datistemplate AND NOT datallowconn"
_NAME = re.compile(rf"{_PREFIX}(?P<package>.*)_[0-9a-f]{{12}}(_unfinished)?", re.DOTALL)
_TEMPLATES = """
    SELECT datname, coalesce(shobj_description(oid, 'pg_database'), ''), extract(epoch FROM now())::bigint
    FROM pg_database WHERE starts_with(datname, %s) ORDER BY datname
"""
# Which checkout has used it last, and when, as far as that is known.
_USED = re.compile(r"used (?P<time>[0-9]+) by (?P<checkout>[0-9a-f]{6})")
_NOTED_SECONDS = 60 * 60
_STALE_SECONDS = 7 * 24 * 60 * 60
_SETTINGS = """
    SELECT coalesce(r.rolname, ''), item FROM pg_db_role_setting s
    LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) AS item
    WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = %s) ORDER BY 1, 2
"""
_GRANTS = """
    SELECT coalesce(r.rolname, ''), privilege_type, is_grantable
    FROM pg_database d, aclexplode(d.datacl) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE datname = %s AND a.grantee <> d.datdba ORDER BY 1, 2
"""
_HAS_GRANTS = "SELECT datacl IS NOT NULL FROM pg_database WHERE datname = %s"
# Their values are lists of names, and ALTER DATABASE takes each by itself; as pg_dump knows them.
_LISTS = (
    *("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries"),
    *("temp_tablespaces", "unix_socket_directories"),
)


@dataclass(frozen=True, slots=True)
class Template:
    """A sealed template, and what PostgreSQL does not copy with it."""

    name: str
    options: str
    """What follows ``TEMPLATE …`` in CREATE DATABASE to have it copied in the way that is quickest on this server."""
    settings: tuple[tuple[str, str], ...]
    """Role (empty for all) and ``name=value`` of each ``ALTER DATABASE … SET`` and ``ALTER ROLE … IN DATABASE``."""
    grants: tuple[tuple[str, str, bool], ...] | None
    """Role (empty for PUBLIC), privilege and grant option; `None` where nobody has granted or revoked anything."""


def name_of(package: Package, today: date) -> str:
    """Return the name of a package's template: what it is made from, and the month.

    The month counts because of what revisions make for it, such as partitions.

    :param today: a day of the month.
    """
    digest = hashlib.sha256(f"{today:%Y-%m}\n{label.TABLES}".encode())
    migrations = package.folder / "migrations"
    for path in sorted(_files(migrations)):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(migrations).as_posix()} {len(content)}\n".encode() + content)
    return f"{_PREFIX}{_short(package)}_{digest.hexdigest()[:12]}"


def ensure(run: Run, target: Target, today: date) -> Template:
    """Return the package's template, made if it isn't there, and held against being dropped until the run ends.

    However many runs and workers ask at once, one makes it and the others wait. Templates that nobody uses are dropped:
    this checkout's of the same package from other revisions or another month, and any that was not used for a week.

    :param target: of the package, on the run's server.

    Raise what creating and migrating a database raises.
    """
    name = name_of(target.package, today)
    run.hold(name)
    while not _is_there(run, name):
        # Let go first: of two that hold it neither would ever have it alone.
        run.let_go(name)
        with run.alone(name):
            if not _is_there(run, name):
                _make(run, target, name)
        run.hold(name)
    _tidy(run, target.package, name)
    return _read(run.connection, name)


def clone(run: Run, template: Template, name: str) -> None:
    """Make a database from a template, its settings and grants included.

    Raise `psycopg.Error` if the server refuses.
    """
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}" + template.options)
    run.execute(statement.format(sql.Identifier(name), sql.Identifier(template.name)))
    for each in _carried(template, sql.Identifier(name)):
        run.execute(each)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _short(package: Package) -> str:
    return package.name.encode()[:_LONGEST_PACKAGE].decode(errors="ignore")


def _is_there(run: Run, name: str) -> bool:
    return run.connection.execute(_IS_SEALED, [name]).fetchone() is not None


def _make(run: Run, target: Target, name: str) -> None:
    from atriz_database import migrations

    unfinished = f"{name}_unfinished"
    # What a killed run left is not trusted.
    _remove(run, unfinished)
    made = run.target(target, unfinished)
    databases.create(made)
    migrations.upgrade(migrations.Run(made))
    identifier = sql.Identifier(unfinished)
    run.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(identifier))
    run.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(identifier))
    # It waits until the last connection of the migration is gone.
    run.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(identifier, sql.Identifier(name)))


def _tidy(run: Run, package: Package, name: str) -> None:
    """Note that the template is in use, and drop those that are not any more."""
    for found, comment, now in run.connection.execute(_TEMPLATES, [_PREFIX]).fetchall():
        used, match = _USED.fullmatch(comment), _NAME.fullmatch(found)
        age = now - int(used["time"]) if used else 0
        is_mine = used is None or used["checkout"] == run.checkout
        # Another role's, or gone meanwhile: somebody else's business.
        with suppress(psycopg.Error):
            if found == name:
                if used is None or not is_mine or age > _NOTED_SECONDS:
                    note = sql.Literal(f"used {now} by {run.checkout}")
                    run.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), note))
            elif match and ((is_mine and match["package"] == _short(package)) or age > _STALE_SECONDS):
                with run.alone_now(found.removesuffix("_unfinished")) as is_alone:
                    if is_alone:
                        _remove(run, found)


def _remove(run: Run, name: str) -> None:
    with suppress(psycopg.errors.InvalidCatalogName):
        run.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
    run.drop(name)


def _read(connection: Connection, name: str) -> Template:
    fast = connection.execute("SHOW fsync").fetchone() == ("off",)
    # Where nothing is forced to the disk, copying files is quicker than writing each page to the log as well.
    options = " STRATEGY file_copy" if fast and connection.info.server_version >= 150000 else ""
    settings = tuple((role, item) for role, item in connection.execute(_SETTINGS, [name]))
    granted = connection.execute(_HAS_GRANTS, [name]).fetchone() == (True,)
    grants = tuple((role, what, may) for role, what, may in connection.execute(_GRANTS, [name]))
    return Template(name, options, settings, grants if granted else None)


def _carried(template: Template, name: sql.Identifier) -> Iterator[sql.Composed]:
    """Yield the statements that give a clone what its template has beside its contents."""
    for role, item in template.settings:
        setting, _, value = item.partition("=")
        values = next(csv.reader([value], skipinitialspace=True)) if setting in _LISTS else [value]
        where = sql.SQL("DATABASE {}").format(name)
        if role:
            where = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), name)
        yield sql.SQL("ALTER {} SET {} = {}").format(
            where, sql.Identifier(*setting.split(".")), sql.SQL(", ").join(map(sql.Literal, values or [""]))
        )
    if template.grants is None:
        return
    yield sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name)
    for role, privilege, may_grant in template.grants:
        yield sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
            sql.SQL(privilege),
            name,
            sql.Identifier(role) if role else sql.SQL("PUBLIC"),
            sql.SQL(" WITH GRANT OPTION" if may_grant else ""),
        )
