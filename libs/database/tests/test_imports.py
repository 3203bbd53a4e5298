"""What each entry loads, in a process of its own: an application never pays for Alembic, a look not for SQLAlchemy."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import atriz_database

DIALECT = "sqlalchemy.dialects.postgresql"
WATCHED = {"alembic", "sqlalchemy", "psycopg", "rich", "dotenv", "pytest", "greenlet", "sqlalchemy.orm", DIALECT}


def loaded_by(statement: str) -> set[str]:
    """Return which of the watched libraries a fresh Python has after `statement`."""
    program = f"{statement}\nimport sys\nprint(*sorted({WATCHED!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import atriz_database", set()),
        ("import atriz_database; dir(atriz_database)", set()),
        ("from atriz_database import AtrizError, Package, Workspace", set()),
        ("from atriz_database import DatabaseURL, Target, resolve", set()),
        ("import atriz_database.graph, atriz_database.revisions", set()),
        ("from atriz_database import reference, references, NAMING_CONVENTION", {"sqlalchemy", "sqlalchemy.orm"}),
        ("from atriz_database import Reference", {"sqlalchemy", "sqlalchemy.orm"}),
        ("from atriz_database import PoolTimeoutError, OutcomeUnknownError", set()),
        ("from atriz_database import Database, PoolState", {"sqlalchemy", "psycopg"}),
        # SQLAlchemy's asynchronous connections come with its asynchronous sessions.
        ("from atriz_database import AsyncDatabase", {"sqlalchemy", "sqlalchemy.orm", "greenlet", "psycopg"}),
        (
            "import atriz_database as a; a.Database('postgresql://here/name').close()",
            {"sqlalchemy", "psycopg", DIALECT},
        ),
        ("import atriz_database.look", {"psycopg"}),
        ("import atriz_database.pytest_plugin", {"pytest"}),
    ],
)
def test_entry_loads_what_it_needs_and_no_more(statement: str, loaded: set[str]) -> None:
    assert loaded_by(statement) == loaded


@pytest.mark.parametrize(
    "statement",
    [
        "import atriz_database.look, atriz_database.fleet, atriz_database.server, atriz_database.databases",
        "import atriz_database.label, atriz_database.lock, atriz_database.seeds",
        "import atriz_database.cli.main, atriz_database.cli.builtin",
        "from atriz_database.verbs import *",
    ],
)
def test_administration_loads_neither_alembic_nor_sqlalchemy_nor_rich(statement: str) -> None:
    assert not loaded_by(statement) & {"alembic", "sqlalchemy", "rich"}


def test_a_verb_loads_no_other() -> None:
    """Whichever was loaded first, a name means its function, and not a file."""
    program = (
        "import sys\nfrom atriz_database import verbs\nverbs.migrate\n"
        "print(*sorted(name for name in sys.modules if name.startswith('atriz_database.verbs.')))\n"
        "from atriz_database.verbs import *\n"
        "print(*sorted(name for name in verbs.__all__ if not callable(getattr(verbs, name))))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "atriz_database.verbs.forward\n\n"


@pytest.mark.parametrize("name", ["Database", "AsyncDatabase"])
def test_application_loads_nothing_of_administration(name: str) -> None:
    """Not the command, the verbs, nor what makes and migrates databases."""
    program = (
        f"from atriz_database import {name}\nimport sys\n"
        "print(*sorted(name for name in sys.modules if name.startswith('atriz_database.')))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("atriz_database.") for name in done.stdout.split()}
    stem = {"errors", "lazy", "libpq", "owner", "settings", "url", "workspace"}
    application = {"database", "driver", "engine", "pool", "single", "transaction"}
    assert loaded == stem | application | ({"asynchronous", "tasks"} if name == "AsyncDatabase" else set())


def test_migrations_is_the_only_module_that_loads_alembic() -> None:
    names = [each.name for each in pkgutil.walk_packages(atriz_database.__path__, "atriz_database.")]
    others = [name for name in names if ".migrations" not in name and not name.endswith(".__main__")]
    assert "atriz_database.cli.main" in others
    assert "alembic" not in loaded_by(f"import {', '.join(others)}")
    assert "alembic" not in loaded_by("import atriz_database.migrations")
    assert "alembic" in loaded_by("from atriz_database.migrations import upgrade")


def test_every_public_name_is_there_and_comes_from_the_module_it_belongs_to() -> None:
    for name in atriz_database.__all__:
        assert getattr(atriz_database, name) is not None
    assert atriz_database.resolve is importlib.import_module("atriz_database.settings").resolve
    assert dir(atriz_database) == sorted(atriz_database.__all__)


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'resolv'"):
        atriz_database.resolv  # noqa: B018
