"""Ownership and rights settled over every kind of object, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import errors, sql

from atriz_database import ownership, roles, settlement
from atriz_database.databases import Connection
from atriz_database.roles import Roles
from atriz_database.testing.run import Run
from atriz_database.url import DatabaseURL
from atriz_database.workspace import Dependents

_OBJECTS = """
    CREATE EXTENSION hstore;
    CREATE SCHEMA "Odd %s";
    CREATE TABLE "Odd %s"."T ""%s" ("C (x)" int, "Id" serial, more int GENERATED ALWAYS AS IDENTITY);
    CREATE FUNCTION "Odd %s"."F %"(VARIADIC a "Odd %s"."T ""%s"[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION "Odd %s"."F %"(INOUT a int, OUT b text) LANGUAGE sql AS 'SELECT 1, NULL::text';
    CREATE PROCEDURE "Odd %s".p(INOUT a int) LANGUAGE sql AS 'SELECT 1';
    CREATE AGGREGATE "Odd %s".agg(int) (sfunc = int4pl, stype = int);
    CREATE AGGREGATE rows(*) (sfunc = int8inc, stype = int8, initcond = '0');
    CREATE AGGREGATE disc(float8 ORDER BY anyelement) (
        sfunc = ordered_set_transition, stype = internal, finalfunc = percentile_disc_final, finalfunc_extra);
    CREATE TYPE "Odd %s".pair AS (a int, b int);
    CREATE TYPE span AS RANGE (subtype = int4);
    CREATE TYPE mood AS ENUM ('good');
    CREATE DOMAIN name_ AS text;
    CREATE VIEW v AS SELECT 1 AS a;
    CREATE MATERIALIZED VIEW m AS SELECT 1 AS a;
    CREATE STATISTICS s ON "C (x)", "Id" FROM "Odd %s"."T ""%s";
    CREATE COLLATION c FROM "C";
    CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);
    CREATE TEXT SEARCH DICTIONARY lexemes (TEMPLATE = simple);
    CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
    CREATE OPERATOR CLASS ops FOR TYPE int USING btree AS OPERATOR 1 <, FUNCTION 1 btint4cmp(int, int);
    CREATE SEQUENCE q;
    CREATE UNLOGGED TABLE u (a int);
    CREATE TABLE parts (a int) PARTITION BY LIST (a);
    CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
    CREATE FOREIGN DATA WRAPPER w;
    CREATE SERVER elsewhere FOREIGN DATA WRAPPER w;
    CREATE FOREIGN TABLE f (a int) SERVER elsewhere;
    CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
"""
_DEPENDENTS = Dependents(("Odd %s.*", "rows"), (('Odd %s.T "%s', ("C (x)", "Id")), ("m", ("*",))))


@pytest.fixture
def database(
    server_url: DatabaseURL, new_database_name: Callable[[str], str], _run: Run
) -> Iterator[tuple[Connection, Roles]]:
    """Yield a superuser's connection to a database of the test's own with one of everything in it, and its roles."""
    name = new_database_name("odd") + " \"%s'"
    _run.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    names = roles.of(name)
    for step in roles.settling({}, roles.wanted(names, in_production=True)):
        _run.execute(step.statement)
    url = server_url.with_database(name)
    with psycopg.connect(**dict(url.parameters), autocommit=True) as connection:
        connection.execute(_OBJECTS.encode())
        yield connection, names
    _run.drop(name)
    _run.execute(sql.SQL("DROP ROLE {}").format(sql.SQL(", ").join(map(sql.Identifier, names.names))))


def test_everything_gets_its_owner_and_its_rights(database: tuple[Connection, Roles]) -> None:
    """Every kind of object, whatever it is called; then there is nothing left, and nothing to do a second time."""
    connection, names = database
    with connection.transaction():
        done = settlement.settle(connection, names, _DEPENDENTS, names.names)
    assert (done.left, done.unknown) == ((), ())
    assert {each.kind for each in done.moved} >= {"aggregate", "operator class", "type", "composite type", "collation"}
    assert ownership.foreign(connection, names.owner) == []
    with connection.transaction():
        again = settlement.settle(connection, names, _DEPENDENTS, names.names)
    assert not again.moved
    assert not again.change


def test_dependents_have_what_is_named_and_no_more(database: tuple[Connection, Roles]) -> None:
    """Columns and functions by their names as they are, signatures of one name together."""
    connection, names = database
    with connection.transaction():
        settlement.settle(connection, names, _DEPENDENTS, names.names)
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(names.dependents)))
    for allowed in (
        b'SELECT "C (x)", "Id" FROM "Odd %s"."T ""%s"',
        b'SELECT * FROM "Odd %s"."F %"(1)',
        b'CALL "Odd %s".p(1)',
        b"SELECT rows(*) FROM m",
    ):
        connection.execute(allowed)
    for refused in (
        b'SELECT more FROM "Odd %s"."T ""%s"',
        b'INSERT INTO "Odd %s"."T ""%s" DEFAULT VALUES',
        b"SELECT * FROM v",
        b"SELECT nextval('q')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(refused)


@pytest.fixture
def run(_run: Run) -> Run:
    """Return this process's part of the test run."""
    return _run


def test_roles_of_killed_test_runs_are_dropped(run: Run) -> None:
    """A later run drops what `grant` has named after the databases of a run that is no more, and not a living one's."""
    gone = roles.of(f"atriz_test_left_{run.checkout}00000000_1").app
    living = roles.of(run.new_name("left")).app
    for name in (gone, living):
        run.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    run.sweep()
    assert roles.existing(run.connection, [gone, living]).keys() == {living}
    run.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(living)))
