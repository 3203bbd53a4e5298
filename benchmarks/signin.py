"""Topic signin: what it costs to know who asks, beside the SELECTs that it takes; and how that grows with the tables.

The ways, and the sizes, take turns in one process: a ratio is one turn's to the other's of the same round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.accounts import CHECK, HASH, NEEDED, REFRESH, ROW, SIGN_IN, SIGNATURE, UNKNOWN
from benchmarks.case import Case, Mark, Options, ratio
from benchmarks.cluster import ROOT, Cluster
from benchmarks.measure import Entry, Sample

_DATABASE = "bench_signin"
_SIZES = (10_000, 100_000)
_BIG = 1_000_000
_TOKENS_A_USER = 10
_CHECKS = 2_000
_SIGN_INS = 10

# Of each user five access tokens, one of them revoked, and five refresh tokens: the newest, and those that were used.
_FILL = (
    "INSERT INTO users (email, name, password_hash, email_verified)"
    " SELECT 'user' || n || '@example.com', 'User ' || n, 'hash', true FROM generate_series(1, {users}) n",
    "INSERT INTO user_roles (user_id, role_id) SELECT users.id, roles.id FROM users, roles WHERE roles.name = 'member'",
    "INSERT INTO auth_tokens (user_id, token_type, token_hash, expires_at, last_used_at, revoked_at, family_id)"
    " SELECT id, CASE WHEN k <= 5 THEN 'access' ELSE 'refresh' END, encode(sha256(convert_to("
    "CASE k WHEN 1 THEN 'access' WHEN 2 THEN 'revoked' WHEN 6 THEN 'refresh' ELSE 'other ' || k END"
    " || ' ' || substr(email, 5, strpos(email, '@') - 5), 'UTF8')), 'hex'), now() + interval '30 days',"
    " CASE WHEN k > 6 THEN now() END, CASE WHEN k = 2 THEN now() END, id FROM users, generate_series(1, {each}) k",
)


def cases(cluster: Cluster, options: Options) -> Iterator[Case]:
    """Measure the cases and yield each as it is done."""
    sizes = (100, 200) if options.quick else (*_SIZES, _BIG) if options.big else _SIZES
    for size in sizes if options.wants("size") else sizes[:1]:
        _fill(cluster, options, size)
    if options.wants("check"):
        yield _check(cluster, options, sizes[0])
    if options.wants("sign-in"):
        yield _sign_in(cluster, options, sizes[0])
    if options.wants("size"):
        yield _by_size(cluster, options, sizes)
    cluster.drop_all()


def _check(cluster: Cluster, options: Options, size: int) -> Case:
    name = "check of an access token"
    ways = (ROW, NEEDED, SIGNATURE, CHECK)
    entries, _ = _measured(cluster, options, name, ways, 20 if options.quick else _CHECKS, (size,))
    needed, mine = entries[1], entries[-1]
    return Case(name, entries, [Mark("at most 1.5 x the SELECT that it needs", 1.5, ratio(mine, needed))])


def _sign_in(cluster: Cluster, options: Options, size: int) -> Case:
    name = "sign-in"
    entries, _ = _measured(cluster, options, name, (HASH, SIGN_IN), 1 if options.quick else _SIGN_INS, (size,))
    floor, mine = entries
    return Case(name, entries, [Mark("at most 1.1 x the hash", 1.1, ratio(mine, floor))])


def _by_size(cluster: Cluster, options: Options, sizes: Sequence[int]) -> Case:
    name = "look-ups by size, in users with ten tokens each"
    ways = (CHECK, UNKNOWN, REFRESH)
    entries, scans = _measured(cluster, options, name, ways, 20 if options.quick else _CHECKS, sizes)
    first = entries[: len(ways)]
    marks = [
        Mark(
            f"{mine.contender}, {mine.revisions:,}: at most 1.25 x {sizes[0]:,}",
            1.25,
            ratio(mine, first[number % len(ways)]),
        )
        for number, mine in enumerate(entries)
        if mine.revisions != sizes[0]
    ]
    # Of a few rows PostgreSQL rightly reads all.
    if not options.quick:
        marks.append(Mark("tables read as a whole", 0, scans, "times"))
    return Case(name, entries, marks)


def _measured(
    cluster: Cluster, options: Options, name: str, ways: Sequence[str], count: int, sizes: Sequence[int]
) -> tuple[list[Entry], float | None]:
    """Return an entry for each way in the database of each size, and how often a table was read as a whole."""
    options.progress(name)
    entries = [Entry(way, size, (), _nothing, _nothing) for size in sizes for way in ways]
    urls = [cluster.url(f"{_DATABASE}_{size}").text(secrets=True) for size in sizes]
    numbers = [str(each) for each in (1 if options.quick else options.rounds, count, len(ways))]
    words = [sys.executable, "-W", "error", "-m", "benchmarks.accounts", *numbers, *ways, *urls]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        for entry in entries:
            entry.failure = f"failed: {lines[-1] if lines else 'it said nothing'}"
        return entries, None
    measured = json.loads(done.stdout)
    for entry, took in zip(entries, measured["took"].values(), strict=True):
        entry.samples.update((number, Sample(seconds, 0.0, 0, None)) for number, seconds in enumerate(took, 1))
    return entries, sum(measured["scans"])


def _fill(cluster: Cluster, options: Options, users: int) -> None:
    """Make core's database with so many users, by its migrations; what has indexes is filled before it has them."""
    options.progress(f"filling: {users} users, {users * _TOKENS_A_USER} tokens")
    database = f"{_DATABASE}_{users}"
    cluster.create([database])
    url = cluster.url(database).text(secrets=True)
    environ = {"PATH": os.environ["PATH"], "HOME": str(cluster.folder), "LANG": "C.UTF-8"}
    environ |= {"CORE_SHARED_DATABASE_URL": url, "APP_ENV": "test"}
    words = [sys.executable, "-m", "atriz_database", "migrate", "core", "--only", "--quiet"]
    subprocess.run(words, cwd=ROOT, env=environ, check=True)
    with cluster.connect(database) as connection:
        connection.execute("SET maintenance_work_mem = '1GB'")
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'auth_tokens' AND indexname LIKE 'ix_%'"
        ).fetchall()
        constraints = connection.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'auth_tokens'::regclass AND contype IN ('p', 'u', 'f')"
        ).fetchall()
        for name, _ in constraints:
            connection.execute(f"ALTER TABLE auth_tokens DROP CONSTRAINT {name}".encode())
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}".encode())
        for statement in _FILL:
            connection.execute(statement.format(users=users, each=_TOKENS_A_USER).encode())
        for name, definition in constraints:
            connection.execute(f"ALTER TABLE auth_tokens ADD CONSTRAINT {name} {definition}".encode())
        for _, definition in indexes:
            connection.execute(definition.encode())
        connection.execute("VACUUM ANALYZE")
    cluster.settle()


def _nothing() -> None:
    """Leave all as it is."""
