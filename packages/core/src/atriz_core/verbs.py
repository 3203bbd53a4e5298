"""What core adds to the ``atriz`` command: users and tokens."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import psycopg

from atriz_core import addresses, passwords, roles, users
from atriz_core.accounts import Policy, normalised_name
from atriz_core.errors import InputError, UserError
from atriz_core.passwords import Hasher
from atriz_core.prune import prune
from atriz_database import databases, label, run
from atriz_database.cli.verb import Call, Verb
from atriz_database.databases import Connection
from atriz_database.errors import ServerError, SettingsError
from atriz_database.fleet import Act, Report
from atriz_database.settings import Target

# What each action needs, and what it takes beside.
_ACTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "list": ((), ("EMAIL", "--role ROLE", "--limit N")),
    "create": (("EMAIL", "--name NAME"), ("--role ROLE", "--password-stdin")),
    "set-password": (("EMAIL",), ("--password-stdin",)),
    "deactivate": (("EMAIL",), ()),
    "activate": (("EMAIL",), ()),
    "grant": (("EMAIL", "ROLE"), ()),
    "revoke": (("EMAIL", "ROLE"), ()),
}
# How it is called there, by where the parser keeps it.
_WORDS = {
    "email": "EMAIL",
    "role": "ROLE",
    "name": "--name NAME",
    "roles": "--role ROLE",
    "password_stdin": "--password-stdin",
    "limit": "--limit N",
}
_MOST = 100
_BEHIND = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)


class _UsageError(SettingsError):
    """The command line lacks something, or has too much."""


@contextmanager
def _connected(target: Target, purpose: str, wait: float = 0.0) -> Iterator[Connection]:
    """Yield a connection to core's database, if it is what the settings take it for.

    Raise `ServerError` if it has no such tables yet.
    """
    with databases.connect(target, purpose=purpose, wait=wait) as connection:
        label.check(target, label.read(connection))
        try:
            yield connection
        except _BEHIND as error:
            raise ServerError(
                f"{target.database} is behind the code: {error.diag.message_primary}. Run `atriz migrate core`."
            ) from None


def _configure_users(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="ACTION", help=", ".join(_ACTIONS))
    parser.add_argument("email", nargs="?", metavar="EMAIL", help="the user's address; of list, a part of it or a name")
    parser.add_argument("role", nargs="?", metavar="ROLE", help="of grant and revoke: admin, manager, member, …")
    parser.add_argument("--name", help="of create: the name as the person writes it")
    parser.add_argument(
        "--role",
        dest="roles",
        action="append",
        metavar="ROLE",
        help="of create: a role to give; of list: show only who has it, or one of them; --role may be repeated",
    )
    parser.add_argument(
        "--password-stdin",
        action="store_true",
        help="of create and set-password: read the password from stdin, its first line, and do not ask",
    )
    parser.add_argument("--password", type=_no_argument, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=_positive, metavar="N", help=f"of list: how many at most (default: {_MOST})")


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
    action: str = given.action
    _refuse_misfits(given)
    (target,) = run.locate(call.workspace, call.workspace.select("core"), call.output.report)
    connected = partial(_connected, target, "users", call.options.wait)
    if action == "list":
        with connected() as connection:
            return _list(call, connection, given.email or "", given.roles or (), given.limit or _MOST)
    email = addresses.normalised(given.email)
    password_hash = name = ""
    if action in ("create", "set-password"):
        if action == "create":
            name = normalised_name(given.name)
        # All that needs no password comes first, and nothing is held while a person takes their time.
        with connected() as connection:
            if action == "create":
                users.refuse_new(connection, email, given.roles or ())
            else:
                users.get(connection, email)
        password = _password(email, from_stdin=given.password_stdin)
        passwords.refuse(password, Policy().shortest_password, about=(email, name))
        password_hash = Hasher().hash(password)
    with connected() as connection:
        is_changed = True
        match action:
            case "create":
                users.create(connection, email, name, password_hash, given.roles or ())
                done = "created"
            case "set-password":
                users.set_password(connection, email, password_hash)
                done = "password set, signed out everywhere"
            case "deactivate":
                is_changed = users.deactivate(connection, email)
                done = "deactivated, signed out everywhere" if is_changed else "is inactive already"
            case "activate":
                is_changed = users.activate(connection, email)
                done = "activated" if is_changed else "is active already"
            case "grant":
                is_changed = roles.grant(connection, email, given.role)
                done = f"granted {given.role}" if is_changed else f"has {given.role} already"
            case _:
                is_changed = roles.revoke(connection, email, given.role)
                done = f"revoked {given.role}" if is_changed else f"does not have {given.role}"
        # What stands there now, and not what was asked for.
        user = users.get(connection, email)
    if call.output.as_json:
        call.output.document({"action": action, "role": given.role, "changed": is_changed, "user": asdict(user)})
    call.output.text(f"{email}: {done}")
    return 0


def _refuse_misfits(given: argparse.Namespace) -> None:
    """Refuse what the action does not take, and what it lacks, before anybody is asked for anything."""
    action: str = given.action
    needs, may = _ACTIONS[action]
    held = [word for key, word in _WORDS.items() if getattr(given, key)]
    extra = [word for word in held if word not in needs + may]
    lacks = [word for word in needs if word not in held]
    how = f"It is `{_form(action)}`; `atriz users --help` has examples."
    if extra:
        raise _UsageError(f"users {action} takes no {' and no '.join(extra)}. {how}")
    if lacks:
        raise _UsageError(f"users {action} needs {' and '.join(lacks)}. {how}")
    if "--password-stdin" in may and not given.password_stdin and not sys.stdin.isatty():
        raise _UsageError(
            "There is no terminal to ask for the password on. Write it to stdin, and add --password-stdin."
        )


def _form(action: str) -> str:
    needs, may = _ACTIONS[action]
    return " ".join(("atriz users", action, *needs, *(f"[{word}]" for word in may)))


def _list(call: Call, connection: Connection, word: str, of: Sequence[str], limit: int) -> int:
    # One more, to see whether there are more.
    found = users.find(connection, word, limit + 1, of)
    shown = found[:limit]
    if call.output.as_json:
        call.output.document([asdict(user) for user in shown])
        return 0
    if not shown:
        call.output.text(
            "Nobody is like that. `atriz users list` shows everybody."
            if word or of
            else "There is nobody yet. `atriz users create EMAIL --name NAME` makes somebody."
        )
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
        call.output.text(
            f"There are more than {limit}: `atriz users list WORD` shows those with WORD in the address or the name, "
            f"`atriz users list --limit {limit * 10}` more of all."
        )
    return 0


def _password(email: str, *, from_stdin: bool) -> str:
    """Return the password that a person types twice, or that a program writes; never an argument, which all can see."""
    if from_stdin:
        return _first_line()
    try:
        first = getpass.getpass(f"Password for {email}: ")
        second = getpass.getpass("Once more: ")
    except (EOFError, KeyboardInterrupt) as error:
        # What follows is no part of the prompt's line.
        sys.stderr.write("\n")
        if isinstance(error, EOFError):
            raise UserError("No password was given. Nothing was changed.") from None
        raise
    if first != second:
        raise InputError("password", "The two passwords differ. Nothing was changed; try again.")
    return first


def _first_line() -> str:
    try:
        line = sys.stdin.readline(passwords.LONGEST + 2).rstrip("\r\n")
        line.encode()  # In some locales other bytes come in as halves of characters, and no error.
    except UnicodeError:
        raise InputError("password", "The password on stdin is not in UTF-8. Write it in UTF-8.") from None
    if not line:
        raise InputError("password", "There is no password on stdin: its first line is empty, or there is none.")
    return line


users_verb = Verb(
    "Make users, let them in or keep them out, and say what they may do.",
    _users,
    _configure_users,
    "The password is asked for, twice, or read from stdin. Whoever is deactivated, or gets a new password here, is\n"
    "signed out everywhere at once.\n\n"
    + "actions:\n"
    + "".join(f"  {_form(action)}\n" for action in _ACTIONS)
    + "\nexamples:\n  atriz users create ines@example.com --name 'Ines Duarte' --role manager --role member\n"
    "  atriz users list example.com --role manager\n  atriz users set-password ines@example.com\n"
    "  atriz users grant ines@example.com admin\n  atriz users deactivate ines@example.com",
)


def _configure_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("prune",), metavar="ACTION", help="prune")


def _tokens(call: Call) -> int:
    from atriz_database import verbs

    return call.output.finish(verbs.on_each(call.workspace, "core", partial(_prune), call.options, call.output.report))


def _prune(target: Target, report: Report) -> None:
    started = time.perf_counter()
    with _connected(target, "prune") as connection:
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
