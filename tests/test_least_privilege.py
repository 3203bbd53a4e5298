"""The packages of this repository with roles of their own: each app does its work, and PostgreSQL refuses the rest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import psycopg
import pytest
import second
from clone import copy_tree
from dotenv import dotenv_values
from fastapi.testclient import TestClient
from psycopg import conninfo
from tree import Tree, clean_environment

from atriz_core.accounts import Accounts, Policy
from atriz_core.mail import Message
from atriz_core.passwords import Cost
from atriz_core.tokens import Keys
from atriz_database import Database, server

EMAIL = "vera@example.com"
PASSWORD = "correct horse battery staple"
MODULES = {"atriz": "atriz_website.web", "mextrack": "mextrack.web", "pshop": "pshop.web"}
OWN = {"atriz": "/profile", "mextrack": "/vehicles", "pshop": "/sales"}
DATABASES = {"core": "atriz_shared", "atriz": "atriz_db", "mextrack": "mextrack_db", "pshop": "pshop_db"}

Urls = Mapping[str, Mapping[str, str | None]]

# A server of their own, which every process of the quick tests would start.
pytestmark = pytest.mark.gate


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of this repository."""
    made = tmp_path_factory.mktemp("granted") / "repository"
    copy_tree(made)
    return made


@pytest.fixture(scope="module")
def tree(root: Path) -> Iterator[Tree]:
    """Yield the copy after setup, grant and `env --write`, on a server with passwords."""
    with second.running() as running:
        tree = Tree(root, clean_environment(root) | running.environ, str)
        for words in (["setup"], ["grant", "--whole-server"], ["env", "--write"], ["check"], ["migrate"]):
            done = tree.atriz(*words)
            assert done.returncode == 0, done.stdout + done.stderr
        yield tree


@pytest.fixture(scope="module")
def urls(tree: Tree) -> Urls:
    """Return what `env --write` has written for each package."""
    folders = {name: tree.root / ("packages" if name == "core" else "apps") / name for name in DATABASES}
    return {name: dotenv_values(folder / ".env", interpolate=False) for name, folder in folders.items()}


class Postbox:
    """Keeps the mails that would be sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def send(self, message: Message) -> None:
        """Keep a mail."""
        self.messages.append(message)


def test_each_app_serves_its_users_on_its_own_role(urls: Urls) -> None:
    """Register, verify, sign in, refresh, reset, sign out, and read one's own data: with what `env --write` wrote."""
    keys, box = Keys.parse("k:" + "k" * 32), Postbox()
    with ExitStack() as stack:
        clients: dict[str, TestClient] = {}
        for name, module in MODULES.items():
            written = urls[name]
            assert f"//{DATABASES[name]}_app:" in (written["DATABASE_URL"] or "")
            shared = stack.enter_context(Database(written["SHARED_DATABASE_URL"] or "", name=name))
            own = stack.enter_context(Database(written["DATABASE_URL"] or "", name=name))
            accounts = Accounts(shared, keys, box, Policy(cost=Cost(1, 8, 1)))
            app = import_module(module).create_app(accounts=accounts, database=own)
            clients[name] = stack.enter_context(TestClient(app))
        post = clients["pshop"].post
        body = {"email": EMAIL, "password": PASSWORD, "name": "Vera"}
        assert post("/auth/register", json=body).status_code == 202
        assert post("/auth/verify-email", json={"token": box.messages[-1].token}).status_code == 204
        tokens = post("/auth/login", json=body).json()
        tokens = clients["atriz"].post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}).json()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        for name, client in clients.items():
            assert client.get("/auth/me", headers=headers).json()["email"] == EMAIL
            assert client.get(OWN[name], headers=headers).status_code in (200, 404), client.get(
                OWN[name], headers=headers
            )
        assert post("/auth/reset-password", json={"email": EMAIL}).status_code == 202
        new = {"token": box.messages[-1].token, "password": PASSWORD[::-1]}
        assert clients["mextrack"].post("/auth/reset-password/confirm", json=new).status_code == 204
        # Signed out everywhere by the new password.
        assert {client.get("/auth/me", headers=headers).status_code for client in clients.values()} == {401}
        answer = post("/auth/login", json=body | {"password": PASSWORD[::-1]})
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert clients["atriz"].post("/auth/logout", headers=headers).status_code == 204
        assert {client.get("/auth/me", headers=headers).status_code for client in clients.values()} == {401}


_IN_SHARED = [
    "SELECT password_hash FROM users",
    "SELECT * FROM users",
    "SELECT email FROM users",
    "SELECT (auth.credentials(email, '')).password_hash FROM users",
    "SELECT count(password_hash) FROM users",
    "COPY users TO STDOUT",
    "SELECT token_hash FROM auth_tokens",
    "SELECT * FROM attempts",
    "SELECT * FROM roles",
    "SELECT * FROM user_roles",
    "INSERT INTO user_roles (user_id, role_id) SELECT gen_random_uuid(), gen_random_uuid()",
    "UPDATE roles SET name = 'x'",
    "DELETE FROM user_roles",
    "INSERT INTO users (email, password_hash, name) VALUES ('a@b.de', 'x', 'x')",
    "UPDATE users SET is_active = true",
    "UPDATE users SET email_verified = true",
    "UPDATE users SET name = name",
    "DELETE FROM users",
    "TRUNCATE attempts",
    "SELECT id FROM users FOR UPDATE",
    "INSERT INTO auth_tokens (user_id) VALUES (gen_random_uuid())",
    "UPDATE auth_tokens SET revoked_at = NULL",
    "CREATE TABLE mine (id int)",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION auth.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE users DISABLE TRIGGER ALL",
    "ALTER FUNCTION auth.credentials(text, text) SECURITY INVOKER",
    "DROP FUNCTION auth.sign_out(text)",
    "DROP TABLE users",
    "GRANT SELECT ON users TO mextrack_db_app",
    "SET ROLE atriz_shared_owner",
    "SELECT * FROM atriz.history",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "ALTER ROLE mextrack_db_app CREATEROLE",
    "CREATE DATABASE mine",
]


@pytest.mark.parametrize("statement", _IN_SHARED)
@pytest.mark.parametrize("app", MODULES)
def test_the_server_refuses_in_the_shared_database(urls: Urls, app: str, statement: str) -> None:
    """What sign-in does not need: hashes in bulk, tokens, roles, structure, and whatever lies beyond the database."""
    with psycopg.connect(urls[app]["SHARED_DATABASE_URL"] or "", autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize("app", MODULES)
def test_an_app_connects_to_its_own_database_and_the_shared_one_alone(urls: Urls, app: str) -> None:
    """Everywhere else on the server it is turned away at the door."""
    parameters = conninfo.conninfo_to_dict(urls[app]["DATABASE_URL"] or "")
    others = {*DATABASES.values(), "postgres", "template1"} - {DATABASES[app], DATABASES["core"]}
    for name in others:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(**parameters | {"dbname": name})


@pytest.mark.parametrize("app", MODULES)
def test_an_app_changes_data_and_no_structure_in_its_own_database(urls: Urls, app: str) -> None:
    """Rows, yes; tables, the version and the history, no."""
    with psycopg.connect(urls[app]["DATABASE_URL"] or "", autocommit=True) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        ).fetchall()
        assert tables
        for (table,) in tables:
            connection.execute(f"SELECT count(*) FROM {table}".encode())
            for statement in (
                "TRUNCATE {}",
                "DROP TABLE {}",
                "ALTER TABLE {} ADD mine int",
                "CREATE INDEX ON {} ((1))",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.format(table).encode())
        for statement in ("UPDATE alembic_version SET version_num = 'x'", "SELECT * FROM atriz.label"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_no_password_is_shared(urls: Urls) -> None:
    """Each role has one of its own, and no file but its package's holds it."""
    found = {
        (parameters["user"], parameters["password"])
        for written in urls.values()
        for name, value in written.items()
        if name.endswith("DATABASE_URL") and value
        for parameters in [conninfo.conninfo_to_dict(value)]
    }
    assert len(found) == 2 * len(DATABASES)
    assert len({password for _, password in found}) == len(found)
    assert all(len(str(password)) >= 32 for _, password in found)


@pytest.mark.usefixtures("tree")
def test_files_with_passwords_are_for_their_owner_alone(root: Path) -> None:
    """Mode 0600, for `.env` and for what `grant` keeps."""
    files = [*root.glob("*/*/.env"), *(root / ".atriz" / "passwords").glob("*/*")]
    assert len(files) >= 2 * len(DATABASES)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_rights_survive_clean_and_a_restored_dump(tree: Tree, urls: Urls) -> None:
    """After both `check` finds every right in its place, and the server refuses what it refused before.

    Last of all, since it takes the databases away.
    """
    programs = server._programs(server.of(tree.root))
    environ = {**tree.environ, "PGPASSWORD": tree.environ["PGPASSWORD"]}

    def run(program: str, *words: str) -> None:
        done = subprocess.run([programs / program, *words], env=environ, cwd=tree.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def holds() -> None:
        done = tree.atriz("check")
        assert done.returncode == 0, done.stdout + done.stderr
        with psycopg.connect(urls["mextrack"]["SHARED_DATABASE_URL"] or "", autocommit=True) as connection:
            assert connection.execute("SELECT auth.sign_out('none')").fetchone() == (False,)
            for statement in ("SELECT password_hash FROM users", "DELETE FROM user_roles", "CREATE TABLE mine ()"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(
                **conninfo.conninfo_to_dict(urls["mextrack"]["DATABASE_URL"] or "") | {"dbname": "pshop_db"}
            )

    done = tree.atriz("clean")
    assert done.returncode == 0, done.stderr
    holds()
    for name in DATABASES.values():
        run("pg_dump", "--format=custom", f"--file={name}.dump", name)
    assert tree.atriz("drop", "--yes").returncode == 0
    for name in DATABASES.values():
        run("pg_restore", "--create", "--dbname=postgres", f"{name}.dump")
    holds()
