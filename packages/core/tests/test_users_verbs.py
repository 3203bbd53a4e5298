"""The verbs `users` and `tokens`, run as a person or a program runs them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime
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

    def run(*words: str, stdin: str | io.TextIOBase | None = "") -> tuple[int, str, str]:
        monkeypatch.setenv("CORE_SHARED_DATABASE_URL", database.url.text(secrets=True))
        monkeypatch.setenv("APP_ENV", "test")
        given = Terminal() if stdin is None else io.StringIO(stdin) if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", given)
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
        (("create", EMAIL, "--name", "A", "--password-stdin"), 1, f"`atriz users set-password {EMAIL}`"),
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
        (("grant",), 2, "needs EMAIL and ROLE"),
        (("create",), 2, "atriz: users create needs EMAIL and --name NAME. It is `atriz users create EMAIL --name"),
        (("create", "b@example.com", "admin", "--name", "B"), 2, "users create takes no ROLE. It is `atriz users"),
        (("create", "b@example.com", "--name", " ", "--password-stdin"), 2, "name should be"),
        (("grant", EMAIL, "--role", "admin"), 2, "takes no --role ROLE. It is `atriz users grant EMAIL ROLE`"),
        (("deactivate", EMAIL, "--limit", "3"), 2, "takes no --limit N. It is `atriz users deactivate EMAIL`"),
        (("list", "--name", "Ada", "--password-stdin"), 2, "takes no --name NAME and no --password-stdin"),
        (("list", "--role", "boss"), 1, "admin, manager, member"),
        (("list", "--frobnicate"), 2, "`atriz users --help`"),
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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set-password", "nobody@example.com"), "no user"),
        (("create", EMAIL, "--name", "A"), "already"),
        (("create", "b@example.com", "--name", "B", "--role", "boss"), "no role boss"),
    ],
)
def test_nobody_types_a_password_for_nothing(
    atriz: Any, add_user: AddUser, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    """What can be told without the password is told before it is asked for."""
    add_user()
    asked: list[str] = []
    monkeypatch.setattr("getpass.getpass", asked.append)
    status, _, err = atriz("users", *words, stdin=None)
    assert (status, asked) == (1, [])
    assert says in err


@pytest.mark.parametrize(("raised", "says"), [(EOFError, "No password was given"), (KeyboardInterrupt, "interrupted")])
@pytest.mark.parametrize("prompt", [1, 2])
def test_prompt_that_is_left_is_one_message(
    atriz: Any, add_user: AddUser, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException], says: str, prompt: int
) -> None:
    """Ctrl-D and Ctrl-C, at either prompt: a new line, one message, status 1, and one document with --json."""
    add_user()
    for words in ((), ("--json",)):
        typed = iter([NEW, NEW][: prompt - 1])

        def ask(_: str, typed: Any = typed) -> str:
            for text in typed:
                return str(text)
            raise raised

        monkeypatch.setattr("getpass.getpass", ask)
        status, out, err = atriz("users", "set-password", EMAIL, *words, stdin=None)
        assert status == 1
        assert err.startswith("\natriz: ")
        assert err.count("\n") == 2
        assert says in err
        assert not words or says in json.loads(out)["error"]


@pytest.mark.parametrize(
    ("given", "says"), [(b"", "no password on stdin"), (b"\n", "no password"), (b"\xff\xfe" * 20, "not in UTF-8")]
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_stdin_that_is_no_password_is_told_as_such(
    atriz: Any, add_user: AddUser, given: bytes, says: str, errors: str
) -> None:
    """Nothing, or bytes that are no text, is not a password that is too short."""
    add_user()
    stdin = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8", errors=errors)
    status, _, err = atriz("users", "set-password", EMAIL, "--password-stdin", stdin=stdin)
    assert status == 2
    assert says in err


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


def test_done_already_is_a_result(atriz: Any, add_user: AddUser) -> None:
    """What changed nothing says so, for a person and for a program, and exits with 0."""
    add_user()
    done = [atriz("users", action, EMAIL) for action in ("activate", "deactivate", "deactivate", "activate")]
    assert [status for status, _, _ in done] == [0] * 4
    said = [out.strip().removeprefix(f"{EMAIL}: ") for _, out, _ in done]
    assert said == ["is active already", "deactivated, signed out everywhere", "is inactive already", "activated"]
    documents = [json.loads(atriz("users", *words, "--json")[1]) for words in (("grant", EMAIL, "admin"),) * 2]
    assert [(each["action"], each["role"], each["changed"]) for each in documents] == [
        ("grant", "admin", True),
        ("grant", "admin", False),
    ]


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
    assert datetime.fromisoformat(found[0]["created_at"]).tzinfo
    assert "T" in found[0]["created_at"]


def test_list_filters_by_role(atriz: Any, add_user: AddUser) -> None:
    """Whoever has one of the roles, together with a part of the address; nobody is told, and is an empty list."""
    assert "atriz users create" in atriz("users", "list")[1]
    for number, role in enumerate(("admin", "member", "manager")):
        add_user(f"u{number}@example.com")
        atriz("users", "grant", f"u{number}@example.com", role)

    def found(*words: str) -> list[str]:
        return [user["email"] for user in json.loads(atriz("users", "list", *words, "--json")[1])]

    assert found("--role", "admin") == ["u0@example.com"]
    assert found("--role", "admin", "--role", "manager") == ["u0@example.com", "u2@example.com"]
    assert found("u1", "--role", "admin") == []
    status, out, _ = atriz("users", "list", "u1", "--role", "admin")
    assert (status, out.count("\n")) == (0, 1)
    assert "Nobody" in out


def test_database_without_the_tables_names_the_next_step(
    atriz: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core's database behind the code is told as that, and not in SQL."""
    database.execute("DROP TABLE attempts")
    database.execute("ALTER TABLE users RENAME TO people")
    for words in (("users", "list"), ("users", "grant", EMAIL, "admin"), ("tokens", "prune")):
        status, _, err = atriz(*words)
        assert status == 1
        assert "Run `atriz migrate core`." in err
        assert "LINE" not in err


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
