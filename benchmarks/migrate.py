"""Topic migrate: nothing to do, everything to do, one revision to do; and what nox adds to it.

The marks of a case stand beside it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from atriz_database import workspace
from benchmarks import measure
from benchmarks.case import Case, Mark, Options, difference, memory, ratio
from benchmarks.cluster import ROOT, Cluster
from benchmarks.contender import PROGRAMS, Contender, Place
from benchmarks.floors import ATRIZ, FLOOR_A, FLOOR_B, FLOOR_B_RECORDED
from benchmarks.measure import Entry, RunError, Stages, UnavailableError
from benchmarks.peers import PEERS
from benchmarks.workload import CONTENTS, PACKAGES, contents

_Begin = Callable[[Contender, Place, Stages, int], Callable[[], None]]
"""Brings databases to where a case begins; returns what does so again before each run."""

# They take most of the time, and no mark depends on them.
_PEERS_EVERY = 3
_FLOOR_A_NO_OP = "floor A, nothing to do"


def cases(cluster: Cluster, options: Options) -> Iterator[Case]:
    """Measure the cases and yield each as it is done."""
    for name, case in (
        ("nothing to do", _nothing_to_do),
        ("all pending", _all_pending),
        ("one pending each", _one_pending),
        ("nox -s migrate", _through_nox),
    ):
        if options.wants(name):
            yield case(cluster, options, name)
            cluster.drop_all()


def _nothing_to_do(cluster: Cluster, options: Options, name: str) -> Case:
    sizes = options.sizes(5, 50, 500)
    make = partial(_entry, cluster, options, name, begin=_up_to_date)
    contenders = (FLOOR_A, ATRIZ, *_peers(options))
    entries = {(each.name, size): make(each, size) for size in sizes for each in contenders}
    options.measure(name, list(entries.values()))
    marks = []
    for size in sizes:
        mine, floor = entries[ATRIZ.name, size], entries[FLOOR_A.name, size]
        marks.append(Mark(f"M={size}: at most 1.25 x floor A", 1.25, ratio(mine, floor)))
        marks.append(Mark(f"M={size}: memory at most 1.3 x floor A", 1.3, memory(mine, floor)))
    if len(sizes) > 1:
        few, many = entries[ATRIZ.name, sizes[0]], entries[ATRIZ.name, sizes[-1]]
        marks.append(Mark(f"M={sizes[-1]}: at most 1.25 x M={sizes[0]}", 1.25, ratio(many, few)))
    return Case(name, list(entries.values()), marks)


def _all_pending(cluster: Cluster, options: Options, name: str) -> Case:
    limits = {50: [(FLOOR_A, 1.5)], 500: [(FLOOR_A, 0.8), (FLOOR_B, 2.0), (FLOOR_B_RECORDED, 2.0)]}
    sizes = options.sizes(*limits)
    make = partial(_entry, cluster, options, name, begin=_empty)
    contenders = (FLOOR_A, ATRIZ, FLOOR_B, FLOOR_B_RECORDED, *_peers(options))
    entries = {(each.name, size): make(each, size) for size in sizes for each in contenders}
    options.measure(name, list(entries.values()))
    marks = [
        Mark(
            f"M={size}: at most {limit:g} x {floor.name.partition(':')[0]}",
            limit,
            ratio(entries[ATRIZ.name, size], entries[floor.name, size]),
        )
        for size in sizes
        for floor, limit in limits.get(size, ())
    ]
    return Case(name, list(entries.values()), marks)


def _one_pending(cluster: Cluster, options: Options, name: str) -> Case:
    (size,) = options.sizes(500)
    make = partial(_entry, cluster, options, name)
    no_op = make(FLOOR_A, size, begin=_up_to_date, label=_FLOOR_A_NO_OP)
    floor, mine, *others = (make(each, size, begin=_one_behind) for each in (FLOOR_A, ATRIZ, *_peers(options)))
    entries = [no_op, floor, mine, *others]
    options.measure(name, entries)
    return Case(name, entries, [Mark(f"M={size}: at most 3 x floor A's no-op", 3.0, ratio(mine, no_op))])


def _through_nox(cluster: Cluster, options: Options, name: str) -> Case:
    """Measure `nox -s migrate` beside `atriz migrate`, both in this repository, its databases on the server here."""
    # Each package's own variable in the process environment wins over whatever a .env here says.
    packages = workspace.load(ROOT).packages
    environ = {
        f"{package.prefix}_{form}{package.variable}": cluster.url(package.database).text(secrets=True)
        for package in packages
        for form in ("", "DIRECT_")
    }
    environ["APP_ENV"] = "development"
    here = Place(cluster, ROOT, {package.name: package.database for package in packages})
    programs = {
        "atriz migrate": here.command(PROGRAMS / "atriz", "migrate", environ=environ),
        name: here.command(Path(sys.executable), "-m", "nox", "-s", "migrate", environ=environ),
    }
    entries = [Entry(each, 0, ((command,),), _nothing, _nothing) for each, command in programs.items()]
    failure = ""
    if Path(sys.prefix) != ROOT / ".venv" or find_spec("nox") is None:
        failure = "skipped: it takes the environment that `nox -s dev` makes"
    else:
        try:
            # In the caller's environment: nox may have to renew `.venv`, from wherever the caller gets packages.
            measure.run(((replace(programs[name], environ={**os.environ, **environ}),),))
        except RunError as error:
            failure = f"failed: {error}"
    for entry in entries:
        entry.failure = failure
    options.measure(name, entries)
    return Case(name, entries, [Mark("atriz migrate, and at most 0.4 s", 0.4, difference(entries[1], entries[0]), "s")])


def _peers(options: Options) -> tuple[Contender, ...]:
    return PEERS if options.peers else ()


def _entry(
    cluster: Cluster,
    options: Options,
    case: str,
    contender: Contender,
    revisions: int,
    *,
    begin: _Begin,
    label: str | None = None,
) -> Entry:
    """Return a contender with its files written and its databases where the case begins.

    :param label: what it is called in the table, its own name if not given.
    """
    label = label or contender.name
    options.progress(f"{case}: making {label}, M={revisions}")
    name = f"{re.sub('[^a-z]+', '_', label.partition(':')[0].lower())}_{revisions}"
    place = Place(cluster, cluster.folder / case / name, {package: f"{name}_{package}" for package in PACKAGES})
    try:
        stages = contender.write(place, revisions)
        prepare = begin(contender, place, stages, revisions)
    except UnavailableError as error:
        return Entry(label, revisions, (), _nothing, _nothing, failure=f"skipped: {error}")
    except RunError as error:
        return Entry(label, revisions, (), _nothing, _nothing, failure=f"failed: {error}")
    every = _PEERS_EVERY if contender in PEERS else 1
    return Entry(label, revisions, stages, prepare, partial(_check, contender, place, revisions), every)


def _nothing() -> None:
    """Leave all as it is."""


def _check(contender: Contender, place: Place, revisions: int) -> None:
    """Raise `RunError` unless every database has all that its revisions make, and is said to be at head."""
    for package, database in place.databases.items():
        with place.cluster.connect(database) as connection:
            found = connection.execute(CONTENTS.encode()).fetchone()
            if found != contents(package, revisions):
                raise RunError(f"{database} has {found}, and should have {contents(package, revisions)}")
            if not contender.version:
                continue
            row = connection.execute(contender.version.encode()).fetchone()
            if row is None or row[0] != contender.recorded(package, revisions):
                raise RunError(f"{database} is at {row}, and should be at {contender.recorded(package, revisions)}")


def _up_to_date(contender: Contender, place: Place, stages: Stages, revisions: int) -> Callable[[], None]:
    place.cluster.create(list(place.databases.values()))
    measure.run(stages)
    _check(contender, place, revisions)
    place.cluster.settle()
    return _nothing


def _empty(contender: Contender, place: Place, stages: Stages, revisions: int) -> Callable[[], None]:
    def prepare() -> None:
        place.cluster.create(list(place.databases.values()))
        place.cluster.settle()

    return prepare


def _one_behind(contender: Contender, place: Place, stages: Stages, revisions: int) -> Callable[[], None]:
    databases = list(place.databases.values())
    templates = [f"{database}_before" for database in databases]
    place.cluster.create(templates)
    folder = place.folder.with_name(f"{place.folder.name}_before")
    before = Place(place.cluster, folder, dict(zip(place.databases, templates, strict=True)))
    measure.run(contender.write(before, revisions - 1))
    _check(contender, before, revisions - 1)
    newest = [max(path for path in folder.iterdir() if path.is_file()) for folder in _revision_folders(place.folder)]

    def prepare() -> None:
        place.cluster.create(databases, templates)
        place.cluster.settle()
        for path in newest:
            # As if it had come with a pull just now: nothing that was kept of an earlier run is true of it.
            os.utime(path)

    return prepare


def _revision_folders(root: Path) -> list[Path]:
    """Return Alembic's folders of revisions, or those of SQL files, which have the packages' names."""
    return [path for path in root.rglob("versions") if path.is_dir()] or [root / package for package in PACKAGES]
