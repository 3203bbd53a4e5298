"""A repository of a test's own, and the command run in it as a user would."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Imported here for the processes that are forked from this one.
import atriz_database.cli.main
import atriz_database.drift
import atriz_database.migrations
import atriz_database.seeds
import atriz_database.truncate  # noqa: F401
from atriz_database import databases, head, revisions, settings, workspace
from atriz_database.errors import RevisionError
from atriz_database.settings import Target
from atriz_database.testing import template
from atriz_database.testing.run import Run
from atriz_database.url import DatabaseURL

_REVISION = '''"""{title}"""
from alembic import op

revision: str = "{id}"
down_revision: str | None = {down!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down_body}
'''


_TEMPLATE = '''"""${message}"""
from alembic import op
import sqlalchemy as sa

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else 'pass'}


def downgrade():
    ${downgrades if downgrades else 'pass'}
'''


def alembic_main() -> None:
    """Run the ``alembic`` command, for :func:`forked`."""
    import importlib

    import alembic.config

    # It has bound the stdout of when it was imported.
    importlib.reload(alembic.config).main()


def forked(
    main: Callable[[], object], words: list[str], folder: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command's `main` in a forked process: as if it had been started, without what its imports cost."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, warnings.catch_warnings():
        # xdist has a thread that only waits.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
        if pid == 0:
            os._exit(_run_main(main, words, folder, environ, output.fileno(), errors.fileno()))
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), *texts)


def _run_main(
    main: Callable[[], object], words: list[str], folder: Path, environ: Mapping[str, str], output: int, errors: int
) -> int:
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        sys.path[:0] = filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        sys.argv = words
        warnings.simplefilter("default")
        logging.getLogger().handlers.clear()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return code if isinstance(code, int) else 1 if code else 0
    except BaseException:
        return 99


@dataclass
class Heads:
    """Databases that are at head, made once in a process, by the files of a package that they were made from."""

    run: Run
    _names: dict[str, str] = field(default_factory=dict)

    def has(self, folder: Path) -> bool:
        """Whether one was made from the files in a package's folder."""
        return _digest(folder) in self._names

    def keep(self, folder: Path, name: str) -> None:
        """Keep a copy of a database that is at head."""
        kept = self.run.new_name("head")
        self._copy(name, kept)
        self._names[_digest(folder)] = kept

    def clone(self, folder: Path, name: str) -> None:
        """Make a database as the one that was kept."""
        self._copy(self._names[_digest(folder)], name)

    def _copy(self, name: str, copy: str) -> None:
        template.clone(self.run, template._read(self.run.connection, name), copy)

    def drop(self) -> None:
        """Drop them all."""
        for name in self._names.values():
            self.run.drop(name)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256(folder.name.encode())
    for path in sorted((folder / "migrations").rglob("*.*")):
        digest.update(path.name.encode() + path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def add_column(table: str, column: str) -> str:
    """Return a line of a revision that adds a column by Alembic's operation."""
    return f"op.add_column('{table}', __import__('sqlalchemy').Column('{column}', __import__('sqlalchemy').Text()))"


@dataclass
class Tree:
    """A small repository: packages/core, and apps that depend on it."""

    root: Path
    environ: dict[str, str]
    new_database_name: Callable[[str], str]
    heads: Heads | None = None
    """Where databases at head are kept for later tests; none on a server of the test's own."""
    folders: dict[str, Path] = field(default_factory=dict)
    suffix: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """For names of roles and the like, which no other test has."""
    _databases: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *, requires: tuple[str, ...] | None = None, revisions: int = 1) -> Path:
        """Add a package with `revisions` good revisions; an app depends on core."""
        core = name == "core"
        folder = self.root / ("packages" if core else "apps") / name
        (folder / "migrations" / "versions").mkdir(parents=True)
        needed = requires if requires is not None else () if core else ("core",)
        variable = "SHARED_DATABASE_URL" if core else "DATABASE_URL"
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "0"\ndependencies = {json.dumps(list(needed))}\n'
            f'[tool.atriz.database]\nname = "{self.database(name)}"\nurl = "{variable}"\n'
            '[tool.alembic]\nscript_location = "%(here)s/migrations"\n'
            'file_template = "%%(year)d%%(month).2d%%(day).2d%%(hour).2d%%(minute).2d%%(second).2d'
            '_%%(rev)s_%%(slug)s"\n'
            '[[tool.alembic.post_write_hooks]]\nname = "head"\ntype = "module"\n'
            'module = "atriz_database.head"\noptions = "REVISION_SCRIPT_FILENAME"\n'
        )
        (folder / "migrations" / "env.py").write_text(
            f'from atriz_database.migrations import run\n\nrun("models_{name}:METADATA")\n'
        )
        (folder / "migrations" / "script.py.mako").write_text(_TEMPLATE)
        self.models(name, revisions)
        self.environ["PYTHONPATH"] = str(self.root)
        self.folders[name] = folder
        for number in range(1, revisions + 1):
            self.revise(name, number)
        return folder

    def models(self, name: str, tables: int) -> None:
        """Write the models of a package: the tables that its first revisions make."""
        (self.root / f"models_{name}.py").write_text(
            "from sqlalchemy import Column, Integer, MetaData, Table\n\nMETADATA = MetaData()\n"
            f"for number in range(1, {tables} + 1):\n"
            f'    Table(f"{name}_{{number}}", METADATA, Column("id", Integer))\n'
        )

    def database(self, name: str) -> str:
        """Return the name of a package's database, which no other test has."""
        if name not in self._databases:
            self._databases[name] = self.new_database_name(name)
        return self._databases[name]

    def revise(
        self, name: str, number: int, up: str | None = None, *, id_: str = "", down: str | None = "", body: str = ""
    ) -> Path:
        """Write revision `number`, which runs the SQL `up`, or the Python `body`."""
        revision = id_ or f"{name}{number:04}"
        down = (f"{name}{number - 1:04}" if number > 1 else None) if down == "" else down
        up = up or f"CREATE TABLE {name}_{number} (id int)"
        path = self.folders[name] / "migrations" / "versions" / f"{number:04}_{revision}.py"
        path.write_text(
            _REVISION.format(
                title=f"Revision {number}.",
                id=revision,
                down=down,
                up=body or f"op.execute({up!r})",
                down_body=f"op.execute('DROP TABLE {name}_{number}')",
            )
        )
        with suppress(RevisionError):  # A test may write them in an order in which they make no sense at first.
            files = revisions.read(path.parent)
            head.file_of(path.parent).write_text(head.text(files))
        return path

    def seed(self, name: str, file: str, body: str) -> Path:
        """Write a seed file with the body of its function."""
        path = self.folders[name] / "seeds" / file
        path.parent.mkdir(exist_ok=True)
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        path.write_text(f"def seed(connection):\n{lines}\n")
        return path

    def command(self, *arguments: str) -> list[str]:
        """Return the words of an ``atriz`` command."""
        return [sys.executable, "-m", "atriz_database", *arguments]

    def atriz(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run ``atriz`` in the repository, and return how it ended."""
        from atriz_database.__main__ import main

        return forked(main, ["atriz", *arguments], self.root, {**self.environ, **environ})

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``atriz`` in the repository, and return the process."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def at_head(self, *names: str) -> None:
        """Bring databases to head, as ``atriz migrate`` does: cloned where that was done for the same files.

        :param names: of packages, all of them if none is given.
        """
        assert self.heads is not None, "a repository on the run's own server"
        missing = []
        for name in names or self.folders:
            if self.heads.has(self.folders[name]):
                self.heads.clone(self.folders[name], self.database(name))
            else:
                missing.append(name)
        for name in missing:
            done = self.atriz("migrate", name, "--only")
            assert done.returncode == 0, done.stderr
            self.heads.keep(self.folders[name], self.database(name))

    def alembic(self, name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run plain ``alembic`` in a package's folder, and return how it ended."""
        return forked(alembic_main, ["alembic", *arguments], self.folders[name], {**self.environ, **environ})

    def target(self, name: str, environ: Mapping[str, str] | None = None) -> Target:
        """Return where a package's database is."""
        space = workspace.load(self.root)
        (target,) = settings.resolve(space, [space.package(name)], {**self.environ, **(environ or {})})
        return target if target.url else target.at(self.server)

    @property
    def server(self) -> DatabaseURL:
        """The server that the repository's databases are on."""
        named = settings.named_server(self.environ)
        if named is not None:
            return named
        from atriz_database import server

        home = Path(self.environ["ATRIZ_SERVER_HOME"])
        return server.Server(home, server.of(home).user).url

    def connect(self, name: str) -> databases.Connection:
        """Connect to a package's database."""
        return databases.connect(self.target(name))

    def rows(self, name: str, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query on a package's database."""
        with self.connect(name) as connection:
            return connection.execute(query.encode()).fetchall()

    def wait_until(self, name: str, query: str, process: subprocess.Popen[str] | None = None) -> None:
        """Return when a query on a package's database says true, which a process that ends before never makes so."""
        deadline = time.monotonic() + 30
        while self.rows(name, query) != [(True,)]:
            assert process is None or process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"never true: {query}"

    def exists(self, name: str) -> bool:
        """Return whether a package's database is there."""
        return databases.exists(self.target(name))

    def status(self) -> dict[str, dict[str, Any]]:
        """Return what ``atriz status --json`` says, by package."""
        return {row["package"]: row for row in json.loads(self.atriz("status", "--json").stdout)}


def clean_environment(home: Path) -> dict[str, str]:
    """Return a process environment that names no server and says nothing of an environment.

    A test changes a file and runs it again within a second, in which Python would not see that by its byte code.
    """
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
