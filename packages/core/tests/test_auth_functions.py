"""The functions of schema auth: who may call them, what they run as, and how they find what they look for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from atriz_core.accounts import Accounts, Policy
from atriz_core.errors import SignInError, TokenError
from atriz_core.tokens import Keys
from atriz_database import Database
from atriz_database.url import DatabaseURL

AddUser = Callable[..., UUID]
EMAIL = "ada@example.com"
NEW = "another horse battery staple"


@pytest.fixture
def owner(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection of whoever owns the tables."""
    with psycopg.connect(database.url.text(secrets=True), autocommit=True) as connection:
        yield connection


@pytest.fixture
def app_role(owner: psycopg.Connection[Any]) -> Iterator[str]:
    """Yield a role that has what `atriz grant` gives an app: schema auth with its functions, and nothing else."""
    role = f"atriz_test_app_{uuid4().hex[:12]}"
    name = sql.Identifier(role)
    owner.execute(sql.SQL("CREATE ROLE {}").format(name))
    try:
        owner.execute(sql.SQL("GRANT USAGE ON SCHEMA auth TO {}").format(name))
        owner.execute(sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA auth TO {}").format(name))
        yield role
    finally:
        owner.execute(sql.SQL("DROP OWNED BY {}").format(name))
        owner.execute(sql.SQL("DROP ROLE {}").format(name))


@pytest.fixture
def as_app(database: Database, app_role: str) -> Iterator[Database]:
    """Yield the database as that role sees it."""
    url = DatabaseURL({**database.url.parameters, "options": f"-c role={app_role}"})
    with Database(url, name="as app", production=False) as made:
        yield made


def test_functions_are_all_that_an_app_needs(
    as_app: Database, keys: Keys, outbox: Any, policy: Policy, database: Database
) -> None:
    """A role without a right on any table does everything that `Accounts` does."""
    ((user,),) = as_app.query("SELECT current_user")
    assert user.startswith("atriz_test_app_")
    accounts = Accounts(as_app, keys, outbox, policy)
    accounts.register(EMAIL, NEW, "Ada", "203.0.113.9")
    accounts.verify_email(outbox.last("verify").token)
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, "not the password", "203.0.113.9")
    made = accounts.refresh(accounts.sign_in(EMAIL, NEW, "203.0.113.9").refresh)
    identity = accounts.check(made.access)
    accounts.sign_out(made.access)
    with pytest.raises(TokenError):
        accounts.refresh(made.refresh)
    accounts.register(EMAIL, NEW, "Ada", "203.0.113.9")
    accounts.request_password_reset(EMAIL, "203.0.113.9")
    accounts.reset_password(outbox.last("reset").token, "a third horse battery staple", "203.0.113.9")
    accounts.change_password(EMAIL, "a third horse battery staple", NEW, "203.0.113.9")
    accounts.sign_out_everywhere(identity.user_id)
    assert database.query("SELECT count(*) FROM auth_tokens WHERE revoked_at IS NULL AND last_used_at IS NULL") == [
        (0,)
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT password_hash FROM users",
        "SELECT token_hash FROM auth_tokens",
        "SELECT * FROM attempts",
        "DELETE FROM attempts",
        "UPDATE users SET is_active = true",
        "INSERT INTO users (email, password_hash, name) VALUES ('m@example.com', 'x', 'M')",
        "INSERT INTO auth_tokens (user_id, token_type, token_hash, expires_at) SELECT id, 'api', 'x', now() FROM users",
        "INSERT INTO user_roles (user_id, role_id) SELECT users.id, roles.id FROM users, roles",
        "INSERT INTO roles (name) VALUES ('root')",
        "CREATE FUNCTION auth.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION auth.sign_out(access_hash text) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        "DROP FUNCTION auth.attempt(text, text, text)",
        "ALTER FUNCTION auth.identity(text) SECURITY INVOKER",
    ],
)
def test_app_may_do_nothing_else(as_app: Database, add_user: AddUser, statement: str) -> None:
    """Tables, roles, and the functions themselves are refused by the server."""
    add_user()
    with pytest.raises(Exception, match=r"permission denied|must be owner") as caught:
        as_app.execute(statement)
    assert caught.value.__cause__.sqlstate == "42501"  # type: ignore[union-attr]


def test_app_that_is_broken_into_is_throttled_too(as_app: Database, add_user: AddUser) -> None:
    """A hash comes for one address that the caller knows, and is counted, whatever client it says to have."""
    add_user()
    given = 0
    for number in range(150):
        (row,) = as_app.query(
            "SELECT * FROM auth.credentials(:email, :source)", email=EMAIL, source=f"made up {number}"
        )
        given += row.password_hash is not None
    assert given == 100


YEAR = 365 * 86400


@pytest.mark.parametrize("seconds", ["'Infinity'", "'NaN'", "NULL", "-1", str(YEAR)])
@pytest.mark.parametrize(
    "call",
    [
        "auth.sign_in(:email, '', :hash, NULL, gen_random_uuid(), 'a', {}, 'r', 9)",
        "auth.sign_in(:email, '', :hash, NULL, gen_random_uuid(), 'a', 9, 'r', {})",
        "auth.refresh(:refresh, 'a', {}, 'r')",
        "auth.register('new@example.com', 'h', 'M', 'v', {}, 'p', 9)",
        "auth.register(:email, 'h', 'M', 'v', 9, 'p', {})",
        "auth.begin_reset(:email, 'p', {})",
    ],
)
def test_app_that_is_broken_into_makes_no_token_for_years(
    as_app: Database, accounts: Accounts, add_user: AddUser, password: str, call: str, seconds: str
) -> None:
    """How long a token is good an app says, and the database how long at most: what it made ends soon after it does."""
    add_user()
    refresh = hashlib.sha256(accounts.sign_in(EMAIL, password).refresh.encode()).hexdigest()
    (row,) = as_app.query("SELECT * FROM auth.credentials(:email, '')", email=EMAIL)
    used = {"email": EMAIL, "hash": row.password_hash, "refresh": refresh}
    given = {name: value for name, value in used.items() if f":{name}" in call}
    with pytest.raises(Exception, match="is good for 0 to"):
        as_app.query(f"SELECT {call.format(seconds)}", **given)
    assert as_app.query(f"SELECT {call.format(9)}", **given)


@pytest.mark.parametrize("end", ["reuse", "sign out"])
def test_tokens_without_a_family_end_together(
    as_app: Database, accounts: Accounts, outbox: Any, add_user: AddUser, password: str, end: str
) -> None:
    """Of older data, or of an app that leaves the family out: reuse and signing out end them as well, and no others."""
    add_user()
    (row,) = as_app.query("SELECT * FROM auth.credentials(:email, '')", email=EMAIL)
    signing_in = "SELECT auth.sign_in(:email, '', :hash, NULL, NULL, 'access', 9, 'refresh', 9)"
    as_app.query(signing_in, email=EMAIL, hash=row.password_hash)
    others = accounts.sign_in(EMAIL, password)
    accounts.request_password_reset(EMAIL)
    refreshing = "SELECT (auth.refresh('refresh', :access, 9, :new)).outcome"
    assert as_app.query(refreshing, access="access 2", new="refresh 2") == [("refreshed",)]
    if end == "reuse":
        assert as_app.query(refreshing, access="access 3", new="refresh 3") == [("reused",)]
    else:
        assert as_app.query("SELECT auth.sign_out('access 2')") == [(True,)]
    for each in ("access", "access 2"):
        assert as_app.query("SELECT * FROM auth.identity(:hash)", hash=each) == []
    assert as_app.query("SELECT (auth.refresh('refresh 2', 'a', 9, 'r')).outcome") == [("refused",)]
    assert accounts.check(others.access).email == EMAIL
    accounts.reset_password(outbox.last("reset").token, NEW)


def test_nobody_may_call_them_unasked(owner: psycopg.Connection[Any]) -> None:
    """PostgreSQL lets everybody execute a new function; here nobody may who was not told so, nor see the schema."""
    rows = owner.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a"
        " WHERE pronamespace = 'auth'::regnamespace AND grantee = 0"
    ).fetchall()
    assert rows == []
    assert owner.execute("SELECT has_schema_privilege('pg_monitor', 'auth', 'USAGE')").fetchone() == (False,)


def test_each_runs_as_its_owner_with_a_path_of_its_own(owner: psycopg.Connection[Any]) -> None:
    """What runs as the owner looks for nothing where others can put it; what does not, touches no table."""
    rows = owner.execute(
        "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE pronamespace = 'auth'::regnamespace"
    ).fetchall()
    plain = {name for name, is_definer, _ in rows if not is_definer}
    assert plain == {"limits", "expiry"}
    assert {config[0] for name, _, config in rows if name != "limits"} == {"search_path=pg_catalog, pg_temp"}
    assert len(rows) == 16


def test_table_of_an_attacker_is_not_taken_for_ours(as_app: Database, add_user: AddUser, password: str) -> None:
    """A temporary table, or a function, with the name of ours does not stand in its place."""
    add_user()
    with as_app.transaction():
        as_app.execute("CREATE TEMP TABLE users (id uuid, email text, name text, password_hash text, is_active bool)")
        as_app.execute("INSERT INTO users VALUES (gen_random_uuid(), :email, 'M', 'mine', true)", email=EMAIL)
        as_app.execute("CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'")
        as_app.execute("SET LOCAL search_path = pg_temp, public")
        (row,) = as_app.query("SELECT * FROM auth.credentials(:email, '')", email=EMAIL)
        assert row.password_hash.startswith("$argon2id$")


def test_nothing_is_looked_for_in_a_whole_table(database: Database) -> None:
    """With five thousand users and fifty thousand tokens, every function finds its rows by an index.

    Counted by the server, in one transaction, after enough calls that a plan for all of them is kept.
    """
    database.execute(
        "INSERT INTO users (email, name, password_hash, email_verified)"
        " SELECT 'user' || n || '@example.com', 'U', 'hash', true FROM generate_series(1, 5000) n"
    )
    database.execute(
        "INSERT INTO auth_tokens (user_id, token_type, token_hash, expires_at, family_id)"
        " SELECT id, CASE n % 2 WHEN 0 THEN 'access' ELSE 'refresh' END, email || ' ' || n, now() + interval '1 h', id"
        " FROM users, generate_series(1, 10) n"
    )
    database.execute(
        "INSERT INTO attempts (subject, level, counted_at) SELECT sha256(n::text::bytea), 1, now()"
        " FROM generate_series(1, 20000) n"
    )
    database.execute("INSERT INTO user_roles (user_id, role_id) SELECT users.id, roles.id FROM users, roles")
    database.execute("ANALYZE")

    def scans() -> dict[str, tuple[int, int]]:
        rows = database.query(
            "SELECT relname, seq_scan, idx_scan FROM pg_stat_xact_user_tables"
            " WHERE relname IN ('users', 'auth_tokens', 'attempts', 'user_roles')"
        )
        return {name: (whole, by_index) for name, whole, by_index in rows}

    with database.transaction(force_rollback=True):
        # Before 15 it begins with what the connection has done before.
        before = scans()
        for n in range(1, 9):
            email, token = f"user{n}@example.com", f"user{n}@example.com"
            (row,) = database.query("SELECT * FROM auth.credentials(:email, '203.0.113.9')", email=email)
            assert row.password_hash == "hash"
            assert database.query("SELECT * FROM auth.identity(:hash)", hash=f"{token} 2")[0].email == email
            for statement in (
                "SELECT auth.sign_in(:email, '203.0.113.9', 'hash', NULL, :id, 'a' || :hash, 9, 'r' || :hash, 9)",
                "SELECT (auth.refresh(:hash || ' 1', 'b' || :hash, 9, 's' || :hash)).outcome = 'refreshed'",
                "SELECT auth.sign_out('a' || :hash)",
                "SELECT (auth.refresh(:hash || ' 1', 'c' || :hash, 9, 't' || :hash)).outcome = 'reused'",
                "SELECT auth.begin_reset(:email, 'p' || :hash, 9) = 'U'",
                "SELECT EXISTS (SELECT FROM auth.reset_owner('p' || :hash))",
                "SELECT auth.reset_password('p' || :hash, 'hash', '203.0.113.9')",
                "SELECT auth.change_password(:email, '203.0.113.9', 'hash', 'hash')",
                "SELECT NOT (auth.register(:email, 'h', 'U', 'v' || :hash, 9, 'q' || :hash, 9)).is_new",
                "SELECT NOT auth.verify_email('none' || :hash)",
                "SELECT auth.sign_out_everywhere(:id) IS NOT NULL",
                "SELECT auth.shown(ARRAY[:hash || ' 2', 'none']) IS NULL",
            ):
                used = {"email": email, "hash": token, "id": row.user_id}
                given = {name: value for name, value in used.items() if f":{name}" in statement}
                assert database.query(statement, **given) == [(True,)], statement
        after = scans()
    assert {name: after[name][0] - whole for name, (whole, _) in before.items()} == dict.fromkeys(before, 0)
    assert all(after[name][1] - by_index > 8 for name, (_, by_index) in before.items() if name != "user_roles")
