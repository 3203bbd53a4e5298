"""Topic data: what an application does all day, beside the driver, its pool and SQLAlchemy.

Each contender runs in a process of its own and times itself, because an import would outweigh what is measured; only
the import itself is measured from outside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import Case, Mark, Options, ratio
from benchmarks.cluster import ROOT, Cluster
from benchmarks.contender import Place
from benchmarks.measure import Entry, RunError, Sample

_DATABASE = "bench_data"
_TABLES = (
    "CREATE SEQUENCE counted",
    "CREATE TABLE positions (id bigint, vehicle uuid, at timestamptz, latitude float8, longitude float8, note text)",
)
_ROWS = "SELECT count(*), sum(id), count(DISTINCT at) FROM positions"
_WARM_UP = 64  # transactions, as `application.py` has it
# It takes ten times as long as the others, and its mark leaves room.
_INSERT_EVERY = 3


@dataclass(frozen=True, slots=True)
class _Task:
    """A case, but for what it is run with."""

    case: str
    """As `application.py` calls it."""
    contenders: dict[str, str]
    """What the table calls each, and how `application.py` does."""
    count: int
    marks: Callable[[dict[str, Entry]], list[Mark]]
    every: dict[str, int]


def cases(cluster: Cluster, options: Options) -> Iterator[Case]:
    """Measure the cases and yield each as it is done."""
    for name, task in _TASKS.items():
        if options.wants(name):
            yield _measured(cluster, options, name, task)
            cluster.drop_all()
    if options.wants("import"):
        yield _import(cluster, options)


def _measured(cluster: Cluster, options: Options, name: str, task: _Task) -> Case:
    cluster.create([_DATABASE])
    count = task.count // 500 if options.quick else task.count
    entries = {
        label: Entry(label, count, (), _nothing, _nothing, every=task.every.get(label, 1)) for label in task.contenders
    }
    for number in range(1 - (not options.quick), options.rounds + 1):
        order = list(entries.values())
        start = number % len(order)
        for entry in (*order[start:], *order[:start]):
            if entry.failure or (number > 1 and number % entry.every != 1 % entry.every):
                continue
            options.progress(f"{name}: round {number} of {options.rounds}: {entry.contender}")
            try:
                sample = _run(cluster, task.case, task.contenders[entry.contender], count)
            except RunError as error:
                entry.failure = f"failed: {error}"
                entry.samples.clear()
                continue
            if number > 0:
                entry.samples[number] = sample
    return Case(name, list(entries.values()), task.marks(entries))


def _run(cluster: Cluster, case: str, contender: str, count: int) -> Sample:
    with cluster.connect(_DATABASE) as connection:
        connection.execute("DROP SEQUENCE IF EXISTS counted")
        connection.execute("DROP TABLE IF EXISTS positions")
        for statement in _TABLES:
            connection.execute(statement.encode())
    cluster.settle()
    url = cluster.url(_DATABASE).text(secrets=True)
    words = [sys.executable, "-W", "error", "-m", "benchmarks.application", case, contender, url, str(count)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    with cluster.connect(_DATABASE) as connection:
        if case == "copy":
            found = connection.execute(_ROWS).fetchone()
            if found != (count, count * (count - 1) // 2, count):
                raise RunError(f"positions holds {found}")
        else:
            last = connection.execute("SELECT last_value FROM counted").fetchone()
            if last != (count + _WARM_UP,):
                raise RunError(f"{last} transactions came through, and not {count + _WARM_UP}")
        left = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND state <> 'idle'",
            [_DATABASE],
        ).fetchone()
        if left != (0,):
            raise RunError(f"{left} connections were left at work")
    return Sample(**json.loads(done.stdout), tree=None)


def _import(cluster: Cluster, options: Options) -> Case:
    """Measure whole processes that do nothing but import."""
    here = Place(cluster, ROOT, {})
    python = Path(sys.executable)
    programs = {
        "floor A: import sqlalchemy, psycopg": "import sqlalchemy, psycopg",
        "atriz: from atriz_database import Database": "from atriz_database import Database",
        "atriz: from atriz_database import AsyncDatabase": "from atriz_database import AsyncDatabase",
        "floor B: import sqlalchemy.ext.asyncio, psycopg": "import sqlalchemy.ext.asyncio, psycopg",
    }
    entries = {
        label: Entry(label, 0, ((here.command(python, "-c", program),),), _nothing, _nothing)
        for label, program in programs.items()
    }
    options.measure("import", list(entries.values()))
    floor, mine, tasks, floor_of_tasks = entries.values()
    marks = [
        Mark("Database: at most 1.1 x sqlalchemy, psycopg", 1.1, ratio(mine, floor)),
        Mark("AsyncDatabase: at most 1.1 x sqlalchemy.ext.asyncio, psycopg", 1.1, ratio(tasks, floor_of_tasks)),
    ]
    return Case("import", list(entries.values()), marks)


def _nothing() -> None:
    """Leave all as it is."""


def _transaction_marks(entries: dict[str, Entry]) -> list[Mark]:
    mine, theirs = entries["atriz transaction()"], entries["floor B: SQLAlchemy engine.begin()"]
    return [Mark("transaction(): at most 1.15 x engine.begin()", 1.15, ratio(mine, theirs))]


def _copy_marks(entries: dict[str, Entry]) -> list[Mark]:
    mine, text = entries["atriz copy_rows, tuples"], entries["floor A: psycopg COPY"]
    binary, inserted = entries["psycopg COPY in binary, types set"], entries["floor B: SQLAlchemy insert()"]
    return [
        Mark("at most 1.3 x psycopg's COPY", 1.3, ratio(mine, text)),
        Mark("at most 1.3 x psycopg's COPY in binary", 1.3, ratio(mine, binary)),
        Mark("at most a fifth of insert()", 0.2, ratio(mine, inserted)),
    ]


def _pool_marks(entries: dict[str, Entry]) -> list[Mark]:
    floor = entries["floor A: psycopg_pool"]
    return [
        Mark(f"{label}: at most 1/0.9 x psycopg_pool", 1 / 0.9, ratio(entries[f"atriz {label}"], floor))
        for label in ("transaction()", "transaction(), select() in it", "transaction(), query() in it", "query()")
    ]


_POOLS = {
    "floor A: psycopg_pool": "psycopg_pool",
    "floor B: SQLAlchemy engine.begin()": "SQLAlchemy engine.begin()",
    "SQLAlchemy on psycopg_pool": "SQLAlchemy on psycopg_pool",
    "atriz transaction()": "atriz transaction()",
    "atriz transaction(), select() in it": "atriz transaction(), select() in it",
    "atriz transaction(), query() in it": "atriz transaction(), query() in it",
    "atriz query()": "atriz query()",
}
_TASKS = {
    "transaction with one SELECT": _Task(
        "transactions",
        {"floor A: psycopg": "psycopg", **{label: name for label, name in _POOLS.items() if "pool" not in label}},
        10_000,
        _transaction_marks,
        {},
    ),
    "copy": _Task(
        "copy",
        {
            "floor A: psycopg COPY": "psycopg",
            "psycopg COPY in binary, types set": "psycopg binary",
            "floor B: SQLAlchemy insert()": "SQLAlchemy insert()",
            "atriz copy_rows, tuples": "atriz copy_rows, tuples",
            "atriz copy_rows, mappings": "atriz copy_rows, mappings",
        },
        1_000_000,
        _copy_marks,
        {"floor B: SQLAlchemy insert()": _INSERT_EVERY},
    ),
    "64 threads on 10 connections": _Task("threads", _POOLS, 100_000, _pool_marks, {}),
    "64 tasks on 10 connections": _Task("tasks", _POOLS, 100_000, _pool_marks, {}),
}
