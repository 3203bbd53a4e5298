"""A repository of a test's own, and the command run in it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atriz_database import databases, settings, workspace
from atriz_database.settings import Target
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


@dataclass
class Tree:
    """A small repository: packages/core, and apps that depend on it."""

    root: Path
    environ: dict[str, str]
    suffix: str
    folders: dict[str, Path] = field(default_factory=dict)

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
        )
        (folder / "migrations" / "env.py").write_text(
            'from atriz_database.migrations import run\n\nrun("models:METADATA")\n'
        )
        (folder / "migrations" / "script.py.mako").write_text("")
        (self.root / "models.py").write_text("from sqlalchemy import MetaData\n\nMETADATA = MetaData()\n")
        self.environ["PYTHONPATH"] = str(self.root)
        self.folders[name] = folder
        for number in range(1, revisions + 1):
            self.revise(name, number)
        return folder

    def database(self, name: str) -> str:
        """Return the name of a package's database, which no other test has."""
        return f"{name}_{self.suffix}"

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
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

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

    def alembic(self, name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run plain ``alembic`` in a package's folder."""
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folders[name],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

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

    def exists(self, name: str) -> bool:
        """Return whether a package's database is there."""
        return databases.exists(self.target(name))

    def status(self) -> dict[str, dict[str, Any]]:
        """Return what ``atriz status --json`` says, by package."""
        return {row["package"]: row for row in json.loads(self.atriz("status", "--json").stdout)}


def clean_environment(home: Path) -> dict[str, str]:
    """Return a process environment that names no server and says nothing of an environment."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
