"""What can be read from a package's revisions and models without a database."""

from __future__ import annotations

import ast
import io
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from atriz_database import workspace
from atriz_database.errors import RevisionError
from atriz_database.migrations.commands import config_of
from atriz_database.migrations.explain import explained, explaining, versions_folder
from atriz_database.revisions import Revision, literal

# What a statement does, by its first words; comments are one kind.
_STATEMENT = re.compile(
    r"^(?:COMMENT(?=\s+ON\b)|(?:CREATE|ALTER|DROP)\s+(?:OR\s+REPLACE\s+)?(?:UNIQUE\s+)?\w+\s+(?:CONCURRENTLY\s+)?"
    r"(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?:ONLY\s+)?[\w.\"]+|INSERT\s+INTO\s+[\w.\"]+|UPDATE\s+[\w.\"]+"
    r"|DELETE\s+FROM\s+[\w.\"]+|TRUNCATE\s+[\w.\"]+|GRANT\b|REVOKE\b|DO\b|SELECT\b)",
    re.MULTILINE | re.IGNORECASE,
)
_MODEL = re.compile(r"^\s*__tablename__\s*[:=]|\bTable\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The SQL of one revision's upgrade, or why it cannot be had without running it."""

    revision: Revision
    sql: str
    error: str = ""

    @property
    def operations(self) -> tuple[str, ...]:
        """What the statements do, in their order, repeated ones counted: ``CREATE TABLE users``, ``COMMENT (12)``."""
        found = Counter(" ".join(match.group(0).split()) for match in _STATEMENT.finditer(self.sql))
        return tuple(f"{what} ({number})" if number > 1 else what for what, number in found.items())


def render(package: workspace.Package, ids: Iterable[str]) -> list[Rendered]:
    """Return the SQL of each of the revisions, rendered alone and without a database.

    Raise `RevisionError` if Alembic cannot load the files.
    """
    config = config_of(package)
    script = ScriptDirectory.from_config(config)
    folder = versions_folder(package)
    rendered = []
    for id_ in ids:
        with explaining(package):
            found = script.get_revision(id_)
        assert found is not None, "an id that was read from the files"
        revision = Revision(found.revision, tuple(found._all_down_revisions), found.path)
        output = io.StringIO()
        failure = ""
        with EnvironmentContext(config, script, as_sql=True) as environment:
            # Without transactions, so that an autocommit block writes no COMMIT and BEGIN of ones that never began.
            environment.configure(
                dialect_name="postgresql", output_buffer=output, literal_binds=True, transactional_ddl=False
            )
            try:
                with Operations.context(environment.get_context()):
                    found.module.upgrade()
            except Exception as error:
                failure = f"cannot be rendered without a database: {explained(error, folder)}"
        rendered.append(Rendered(revision, output.getvalue().strip(), failure))
    return rendered


def excuses(revision: Revision) -> dict[str, str]:
    """Return squawk's rules that a revision excuses itself from, each with its reason: ``unsafe = {rule: reason}``.

    Raise `RevisionError` if a reason is missing.
    """
    found = literal(revision.path, "unsafe")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(why, str) and why.strip() for why in found.values()):
        raise RevisionError(f'{revision.path} needs a reason for each rule: unsafe = {{"rule": "reason"}}.')
    return found


def load_metadata(metadata: str) -> sqlalchemy.MetaData:
    """Return the models' `MetaData` from where ``env.py`` says it is."""
    found = pkgutil.resolve_name(metadata)
    assert isinstance(found, sqlalchemy.MetaData), f"{metadata} is not a MetaData"
    return found


def metadata_of(package: workspace.Package) -> str:
    """Return where the package's models are, as its ``env.py`` says it to :func:`run`.

    Raise `RevisionError` if that file has no such call.
    """
    path = package.folder / "migrations" / "env.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "run":
            found = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if found and isinstance(found[0], str):
                return found[0]
    raise RevisionError(f'{path} has no call run("module:attribute"), which says where the models are.')


def unimported(metadata: str) -> list[Path]:
    """Return the files of a package that seem to define models and are not imported with its `MetaData`.

    Autogenerate sees only what is imported: such a table would be missing from every revision.

    :param metadata: as :func:`run` takes it.
    """
    pkgutil.resolve_name(metadata)
    top = sys.modules[metadata.partition(":")[0].partition(".")[0]]
    if not top.__file__ or not top.__file__.endswith("__init__.py"):
        return []
    loaded = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    return [
        path
        for path in sorted(Path(top.__file__).parent.rglob("*.py"))
        if path not in loaded and _MODEL.search(path.read_text(encoding="utf-8"))
    ]
