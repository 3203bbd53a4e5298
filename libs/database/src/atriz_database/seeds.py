"""Seed files: small Python programs that give a database the rows a developer wants to find there.

A package keeps them in ``seeds/001_….py`` and so on. Each has one function, ``seed(connection)``, which gets a
psycopg connection inside a transaction of its file's own, and can be run any number of times.
"""

from __future__ import annotations

import importlib.util
import inspect
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from atriz_database import databases, label, lock
from atriz_database.bytecode import Loader
from atriz_database.databases import Notify
from atriz_database.errors import SeedError
from atriz_database.settings import Target

# What the server itself counted in this transaction. A partition's rows are those of the table it is a part of.
_COUNTS = """
    SELECT coalesce(pg_partition_root(relid), relid)::regclass::text, sum(n_tup_ins)::bigint
    FROM pg_stat_xact_user_tables WHERE n_tup_ins > 0 AND schemaname <> 'atriz'
    GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Seeded:
    """One seed file that ran, its transaction committed."""

    file: str
    inserted: tuple[tuple[str, int], ...]
    """Tables and how many rows each got, as the server counted them."""
    seconds: float

    def __str__(self) -> str:
        return ", ".join(f"{table} {count}" for table, count in self.inserted) or "nothing new"


def files(folder: Path) -> list[Path]:
    """Return the seed files of a package's ``seeds`` folder in the order in which they run."""
    return sorted(path for path in folder.glob("*.py") if path.name[0].isdigit())


def seed(
    target: Target, *, lock_wait: float = lock.DEFAULT_WAIT, notify: Notify = lambda text: None
) -> Iterator[Seeded]:
    """Run a package's seed files in alphabetical order, one transaction each, and yield each once it is committed.

    Raise `SeedError` if a file is broken or fails; its transaction is rolled back, and no later file runs.
    """
    paths = files(target.package.folder / "seeds")
    with (
        lock.held(target, wait=lock_wait, notify=notify) as locked,
        databases.connect(target, purpose="seed") as connection,
    ):
        lock.join(connection)
        label.check(target, label.read(connection))
        for path in paths:
            started = time.perf_counter()
            function = load(path)
            try:
                with connection.transaction():
                    function(connection)
                    counted = tuple(connection.execute(_COUNTS).fetchall())
                    lock.check(locked)
            except (Exception, SystemExit) as error:
                raise _explained(path, error) from None
            yield Seeded(path.stem, counted, time.perf_counter() - started)


def load(path: Path) -> Callable[[databases.Connection], object]:
    """Return the ``seed`` function of a seed file.

    Raise `SeedError` if the file cannot be imported or has none.
    """
    name = f"seeds.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=Loader(name, str(path)))
    assert spec is not None, "a .py file always has a spec"
    assert spec.loader is not None, "and its spec a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _explained(path, error) from None
    function = getattr(module, "seed", None)
    if not callable(function):
        raise SeedError(f"{path} has no function seed(connection). Give it one.")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise SeedError(f"{path}: seed must be a plain function; a coroutine or a generator would not run.")
    return function  # type: ignore[no-any-return]


def _explained(path: Path, error: Exception | SystemExit) -> SeedError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    if isinstance(error, psycopg.Error):
        text = databases.said(error)
        hint = "Has the database been migrated? " if error.sqlstate in ("42P01", "42703") else ""
        return SeedError(f"{place}: {text}. {hint}Nothing of this file was kept.")
    return SeedError(f"{place}: {type(error).__name__}: {error}. Nothing of this file was kept.")
