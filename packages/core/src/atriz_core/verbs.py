"""What core adds to the ``atriz`` command: users and tokens."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

from atriz_core import addresses, passwords, roles, users
from atriz_core.accounts import Policy
from atriz_core.errors import InputError
from atriz_core.passwords import Hasher
from atriz_core.prune import prune
from atriz_database import databases, label
from atriz_database.cli.verb import Call, Verb
from atriz_database.databases import Connection
from atriz_database.errors import SettingsError
from atriz_database.fleet import Act, Report
from atriz_database.settings import Target

_OF_ONE = ("create", "set-password", "deactivate", "activate", "grant", "revoke")


class _UsageError(SettingsError):
    """The command line lacks something."""


@contextmanager
def _connected(call: Call) -> Iterator[Connection]:
    """Yield a connection to core's database, which is what the settings say it is."""
    from atriz_database import run

    (target,) = run.locate(call.workspace, call.workspace.select("core"), call.output.report)
    with databases.connect(target, purpose="users", wait=call.options.wait) as connection:
        label.check(target, label.read(connection))
        yield connection


def _configure_users(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", *_OF_ONE), metavar="ACTION", help=", ".join(("list", *_OF_ONE)))
    parser.add_argument("email", nargs="?", metavar="EMAIL", help="the user's address; of list, a part of it")
    parser.add_argument("role", nargs="?", metavar="ROLE", help="of grant and revoke: admin, manager, member, …")
    parser.add_argument("--name", help="of create: the name as the person writes it")
    parser.add_argument("--role", dest="roles", action="append", default=[], metavar="ROLE", help="of create")
    parser.add_argument(
        "--password-stdin", action="store_true", help="read the password from stdin, its first line, and do not ask"
    )
    parser.add_argument("--password", type=_no_argument, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=_positive, default=100, metavar="N", help="of list: how many at most")


def _no_argument(_text: str) -> str:
    # Without this argparse would take it for the beginning of another option, and repeat what was given.
    raise argparse.ArgumentTypeError(
        "a password on the command line can be read by everybody on this machine: leave it out to be asked, or write "
        "it to stdin with --password-stdin. Take another one than this"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def _users(call: Call) -> int:
    given = call.arguments
    if given.action == "list":
        return _list(call, given.email or "", given.limit)
    email = addresses.normalised(_needed(given.email, "EMAIL", given.action))
    role = _needed(given.role, "ROLE", given.action) if given.action in ("grant", "revoke") else ""
    name = _needed(given.name, "--name NAME", "create") if given.action == "create" else ""
    password_hash = ""
    if given.action in ("create", "set-password"):
        # Before the database is asked for anything: a person takes their time.
        password = _password(email, from_stdin=given.password_stdin)
        passwords.refuse(password, Policy().shortest_password, about=(email, name))
        password_hash = Hasher().hash(password)
    with _connected(call) as connection:
        match given.action:
            case "create":
                users.create(connection, email, name, password_hash, given.roles)
                done = "created"
            case "set-password":
                users.set_password(connection, email, password_hash)
                done = "password set, signed out everywhere"
            case "deactivate":
                users.deactivate(connection, email)
                done = "deactivated, signed out everywhere"
            case "activate":
                users.activate(connection, email)
                done = "activated"
            case "grant":
                done = f"granted {role}" if roles.grant(connection, email, role) else f"has {role} already"
            case _:
                done = f"revoked {role}" if roles.revoke(connection, email, role) else f"does not have {role}"
        # What stands there now, and not what was asked for.
        user = users.get(connection, email)
    if call.output.as_json:
        call.output.document({"done": done, "user": asdict(user)})
    call.output.text(f"{email}: {done}")
    return 0


def _list(call: Call, word: str, limit: int) -> int:
    with _connected(call) as connection:
        # One more, to see whether there are more.
        found = users.find(connection, word, limit + 1)
    shown = found[:limit]
    if call.output.as_json:
        call.output.document([asdict(user) for user in shown])
        return 0
    rows = [
        (
            user.email,
            user.name,
            "inactive" if not user.is_active else "active" if user.email_verified else "unverified",
            f"{user.last_login_at:%Y-%m-%d %H:%M}" if user.last_login_at else "never",
            ", ".join(user.roles) or "-",
        )
        for user in shown
    ]
    call.output.table(("email", "name", "state", "last sign-in", "roles"), rows)
    if len(found) > limit:
        call.output.text(f"There are more than {limit}: give a part of the address, or --limit N.")
    return 0


def _needed(value: str | None, name: str, action: str) -> str:
    if not value:
        raise _UsageError(f"atriz users {action} needs {name}. `atriz users --help` has examples.")
    return value


def _password(email: str, *, from_stdin: bool) -> str:
    """Return the password that a person types twice, or that a program writes; never an argument, which all can see."""
    if from_stdin:
        return sys.stdin.readline(passwords.LONGEST + 2).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise _UsageError("There is no terminal to ask for the password on. Give it on stdin, with --password-stdin.")
    first = getpass.getpass(f"Password for {email}: ")
    if getpass.getpass("Once more: ") != first:
        raise InputError("password", "The two passwords differ. Nothing was changed; try again.")
    return first


users_verb = Verb(
    "Make users, let them in or keep them out, and say what they may do.",
    _users,
    _configure_users,
    "The password is asked for, twice, or read from stdin. Whoever is deactivated, or gets a new password here, is\n"
    "signed out everywhere at once.\n\n"
    "examples:\n  atriz users create ada@example.com --name 'Ada Okafor' --role admin\n"
    "  atriz users list example.com\n  atriz users set-password ada@example.com\n"
    "  atriz users grant ada@example.com manager\n  atriz users deactivate ada@example.com",
)


def _configure_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("prune",), metavar="ACTION", help="prune")


def _tokens(call: Call) -> int:
    from atriz_database import verbs

    return call.output.finish(verbs.on_each(call.workspace, "core", partial(_prune), call.options, call.output.report))


def _prune(target: Target, report: Report) -> None:
    started = time.perf_counter()
    with databases.connect(target, purpose="prune") as connection:
        label.check(target, label.read(connection))
        pruned = prune(connection)
    what = "pruned" if pruned.tokens or pruned.attempts else "up to date"
    words = f"{pruned.tokens} expired tokens, {pruned.attempts} old attempts"
    report(Act(target.package.name, target.database, what, words, seconds=time.perf_counter() - started))


tokens_verb = Verb(
    "Remove tokens that have expired, and attempts that no longer count.",
    _tokens,
    _configure_tokens,
    "Run it from a daily job. It can run at any time, and be cut off.\n\nexamples:\n  atriz tokens prune",
)
