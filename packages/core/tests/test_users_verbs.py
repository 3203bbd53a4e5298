"""The verbs `users` and `tokens`, run as a person or a program runs them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from atriz_core import prune as pruning
from atriz_core import roles
from atriz_core.accounts import Accounts
from atriz_core.errors import SignInError, TokenError
from atriz_database import Database
from atriz_database.cli.main import main

AddUser = Callable[..., UUID]
ROOT = Path(__file__).parents[3]
EMAIL = "ada@example.com"
NEW = "another horse battery staple"


@pytest.fixture
def atriz(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command on `database`, and returns its exit status, stdout and stderr."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def run(*words: str, stdin: str | None = "") -> tuple[int, str, str]:
        monkeypatch.setenv("CORE_SHARED_DATABASE_URL", database.url.text(secrets=True))
        monkeypatch.setenv("APP_ENV", "test")
        monkeypatch.setattr("sys.stdin", Terminal() if stdin is None else io.StringIO(stdin))
        status = main([*words, "--root", str(ROOT)])
        return status, *capsys.readouterr()

    return run


def test_created_user_signs_in_at_once(atriz: Any, accounts: Accounts) -> None:
    """A user made by administration is verified, has their roles, and the password that was read from stdin."""
    status, out, _ = atriz(
        *("users", "create", "Ada@Example.com", "--name", "Ada", "--role", "admin", "--role", "member"),
        *("--password-stdin", "--json"),
        stdin=f"{NEW}\n",
    )
    user = json.loads(out)["user"]
    assert (status, user["email"], user["roles"]) == (0, EMAIL, ["admin", "member"])
    identity = accounts.check(accounts.sign_in(EMAIL, NEW).access)
    assert (str(identity.user_id), identity.roles) == (user["id"], ("admin", "member"))


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("create", EMAIL, "--name", "A", "--password-stdin"), 1, "already"),
        (("create", "b@example.com", "--name", "B", "--role", "boss", "--password-stdin"), 1, "admin, manager, member"),
        (("create", "\u0430da@example.com", "--name", "A", "--password-stdin"), 2, "CYRILLIC"),
        (("create", "b@example.com", "--password-stdin"), 2, "needs --name"),
        (("create", "b@example.com", "--name", "B"), 2, "--password-stdin"),
        (("set-password", "nobody@example.com", "--password-stdin"), 1, "no user"),
        (("deactivate", "nobody@example.com"), 1, "no user"),
        (("activate", "nobody@example.com"), 1, "no user"),
        (("grant", EMAIL, "boss"), 1, "admin, manager, member"),
        (("grant", EMAIL), 2, "needs ROLE"),
        (("revoke", "nobody@example.com", "admin"), 1, "no user"),
        (("grant",), 2, "needs EMAIL"),
        (("remove", EMAIL), 2, "'set-password'"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changes(
    atriz: Any, database: Database, add_user: AddUser, words: tuple[str, ...], status: int, says: str
) -> None:
    """One message with the next step, the exit status of its kind, and a database as before."""
    add_user()
    before = database.query("SELECT row(u.*)::text FROM users u UNION ALL SELECT row(r.*)::text FROM user_roles r")
    found, out, err = atriz("users", *words, stdin=f"{NEW}\n")
    assert (found, out) == (status, "")
    assert says in err
    assert NEW not in err
    assert (
        database.query("SELECT row(u.*)::text FROM users u UNION ALL SELECT row(r.*)::text FROM user_roles r") == before
    )


@pytest.mark.parametrize("given", ["short", "passwordpassword", "", "x" * 1_000_000])
def test_password_is_held_to_the_same_rules(atriz: Any, add_user: AddUser, given: str) -> None:
    """Administration sets no password that its owner could not choose."""
    add_user()
    status, _, err = atriz("users", "set-password", EMAIL, "--password-stdin", stdin=given + "\n")
    assert status == 2
    assert "password" in err


def test_set_password_lets_in_who_never_verified(atriz: Any, add_user: AddUser, accounts: Accounts) -> None:
    """Whoever lost the mail is let in by administration, which answers for the address as for those that it makes."""
    add_user(verified=False)
    assert atriz("users", "set-password", EMAIL, "--password-stdin", stdin=NEW)[0] == 0
    assert accounts.sign_in(EMAIL, NEW)


def test_password_is_asked_for_twice_on_a_terminal(
    atriz: Any, add_user: AddUser, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is typed differently is not taken, and what is typed twice signs out everywhere and lets in."""
    add_user()
    signed_in = accounts.sign_in(EMAIL, "correct horse battery staple")
    typed = iter([NEW, "something else entirely", NEW, NEW])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    status, _, err = atriz("users", "set-password", EMAIL, stdin=None)
    assert status == 2
    assert "differ" in err
    assert accounts.check(signed_in.access)
    assert atriz("users", "set-password", EMAIL, stdin=None)[0] == 0
    with pytest.raises(TokenError):
        accounts.check(signed_in.access)
    assert accounts.sign_in(EMAIL, NEW)


def test_password_is_no_argument(atriz: Any, add_user: AddUser) -> None:
    """There is no option for it: what stands on the command line is read by everybody on the machine."""
    add_user()
    for words in (("--password", NEW), (f"--password={NEW}",)):
        status, _, err = atriz("users", "set-password", EMAIL, *words)
        assert status == 2
        assert "--password-stdin" in err
        assert NEW not in err


def test_deactivated_user_is_out_and_comes_back(
    atriz: Any, add_user: AddUser, accounts: Accounts, password: str
) -> None:
    """From the verb on no token is good and no password lets in; activated, the password does."""
    add_user()
    signed_in = accounts.sign_in(EMAIL, password)
    assert atriz("users", "deactivate", EMAIL)[0] == 0
    with pytest.raises(TokenError):
        accounts.check(signed_in.access)
    with pytest.raises(TokenError):
        accounts.refresh(signed_in.refresh)
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, password)
    assert atriz("users", "activate", EMAIL)[0] == 0
    with pytest.raises(TokenError):
        accounts.check(signed_in.access)
    assert accounts.sign_in(EMAIL, password)


def test_roles_are_granted_and_revoked(atriz: Any, add_user: AddUser, accounts: Accounts, password: str) -> None:
    """A role holds from the next request on; granted twice, or revoked twice, is a result."""
    add_user()
    signed_in = accounts.sign_in(EMAIL, password)
    said = [atriz("users", verb, EMAIL, "manager")[1].strip() for verb in ("grant", "grant")]
    assert said == [f"{EMAIL}: granted manager", f"{EMAIL}: has manager already"]
    assert accounts.check(signed_in.access).roles == ("manager",)
    with psycopg.connect(accounts.database.url.text(secrets=True)) as connection:
        assert roles.has_role(connection, EMAIL, "manager")
        assert not roles.has_role(connection, EMAIL, "admin")
        assert not roles.has_role(connection, EMAIL, "boss")
    said = [atriz("users", verb, EMAIL, "manager")[1].strip() for verb in ("revoke", "revoke")]
    assert said == [f"{EMAIL}: revoked manager", f"{EMAIL}: does not have manager"]
    assert accounts.check(signed_in.access).roles == ()


def test_list_shows_people_and_no_hashes(atriz: Any, add_user: AddUser) -> None:
    """For a person in columns, for a program as JSON; by a part of address or name, with a limit that is told of."""
    add_user()
    add_user("ben_x@example.com", active=False)
    add_user("benyx@example.com", verified=False)
    status, out, _ = atriz("users", "list")
    lines = out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[1:]] == [EMAIL, "ben_x@example.com", "benyx@example.com"]
    assert [line.split()[2] for line in lines[1:]] == ["active", "inactive", "unverified"]
    assert "argon2" not in out
    found = json.loads(atriz("users", "list", "n_x", "--json")[1])
    assert [user["email"] for user in found] == ["ben_x@example.com"]
    assert "argon2" not in str(found)
    assert "more than 2" in atriz("users", "list", "--limit", "2")[1]


def test_database_of_another_environment_is_refused(
    atriz: Any, add_user: AddUser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label is looked at before anything is written: a wrong URL deactivates nobody."""
    add_user()
    database.execute("UPDATE atriz.label SET environment = 'production'")
    for words in (("users", "deactivate", EMAIL), ("users", "list"), ("tokens", "prune")):
        status, _, err = atriz(*words)
        assert status == 2
        assert "labelled core/production" in err
    assert database.query("SELECT is_active FROM users") == [(True,)]


def test_prune_removes_what_has_expired_and_nothing_else(
    atriz: Any, add_user: AddUser, accounts: Accounts, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expired tokens and old attempts go, some at a time; a used refresh token stays, and still tells of a theft."""
    add_user()
    monkeypatch.setattr(pruning, "_AT_ONCE", 3)
    for _ in range(4):
        accounts.sign_in(EMAIL, password)
    accounts.database.execute("UPDATE auth_tokens SET expires_at = now() - interval '1 second'")
    accounts.database.execute(
        "INSERT INTO attempts (subject, level, counted_at, trusted_until) VALUES"
        " ('old', 1, now() - interval '8 days', NULL), ('new', 1, now(), NULL),"
        " ('trusted', 0, now() - interval '8 days', now() + interval '1 day')"
    )
    first = accounts.sign_in(EMAIL, password)
    second = accounts.refresh(first.refresh)
    status, out, _ = atriz("tokens", "prune", "--json")
    (outcome,) = json.loads(out)
    assert (status, outcome["acts"][0]["subject"]) == (0, "8 expired tokens, 1 old attempts")
    assert accounts.check(second.access)
    with pytest.raises(TokenError):
        accounts.refresh(first.refresh)
    with pytest.raises(TokenError):
        accounts.check(second.access)
    assert "up to date" in atriz("tokens", "prune")[1]
