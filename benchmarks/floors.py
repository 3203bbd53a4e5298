"""``atriz migrate`` itself, and the two floors below it: what the work costs by itself."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks import apply, workload
from benchmarks.contender import PROGRAMS, Contender, Place, side_by_side
from benchmarks.measure import Stages, UnavailableError
from benchmarks.workload import PACKAGES

ALEMBIC_VERSION = "SELECT string_agg(version_num, ' ') FROM alembic_version"


def newest(package: str, count: int) -> str:
    """Return the id of a package's revision `count`."""
    return workload.history(package, count)[-1].id


def _write_atriz(place: Place, count: int) -> Stages:
    workload.write_workspace(place.folder, count, place.databases, place.cluster.environ)
    return ((place.command(PROGRAMS / "atriz", "migrate"),),)


def _write_floor_a(place: Place, count: int) -> Stages:
    words = []
    for package in PACKAGES:
        folder = place.folder / package
        folder.mkdir(parents=True)
        for number, revision in enumerate(workload.history(package, count), 1):
            (folder / f"{number:04}_{revision.id}.sql").write_text(revision.sql)
        words += [place.url(package), str(folder)]
    return ((place.command(Path(sys.executable), str(apply.__file__), *words),),)


def _write_floor_b(place: Place, count: int, *, recorded: bool = False) -> Stages:
    psql = place.cluster.programs / "psql"
    if not psql.exists():
        raise UnavailableError(f"there is no psql among the embedded server's programs ({psql.parent})")
    place.folder.mkdir(parents=True)
    for package in PACKAGES:
        statements = [f"{revision.sql};\n" for revision in workload.history(package, count)]
        if recorded:
            write = "BEGIN;\n{}UPDATE version SET name = '{}';\nCOMMIT;\n"
            statements = [write.format(each, number) for number, each in enumerate(statements, 1)]
            statements.insert(0, "CREATE TABLE version (name text NOT NULL);\nINSERT INTO version VALUES ('');\n")
        (place.folder / f"{package}.sql").write_text("".join(statements))
    options = ("-X", "-q", "-v", "ON_ERROR_STOP=1")
    return side_by_side(lambda package: place.command(psql, *options, "-d", place.url(package), "-f", f"{package}.sql"))


ATRIZ = Contender("atriz migrate", _write_atriz, ALEMBIC_VERSION, newest)
FLOOR_A = Contender(
    "floor A: psycopg",
    _write_floor_a,
    "SELECT string_agg(name, ' ') FROM version",
    lambda package, count: f"{count:04}_{newest(package, count)}.sql",
)
FLOOR_B = Contender("floor B: psql -f, 4 at once", _write_floor_b, looks=False)
FLOOR_B_RECORDED = Contender(
    "floor B, recorded as in A",
    partial(_write_floor_b, recorded=True),
    "SELECT string_agg(name, ' ') FROM version",
    lambda package, count: str(count),
    looks=False,
)
