"""Verbs that change databases."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping

from atriz_database import verbs
from atriz_database.cli.arguments import force, limits, one_package, package, package_and_only
from atriz_database.cli.verb import Call, Verb


def _on_fleet(call: Call) -> int:
    given = call.arguments
    words = [given.verb, given.package or "", "--only" if call.options.only else ""]
    again = " ".join(filter(None, ["atriz", *words]))
    verb = getattr(verbs, given.verb)
    return call.output.finish(verb(call.workspace, given.package, call.options, call.output.report), again)


def _configure_destructive(parser: ArgumentParser) -> None:
    package(parser)
    force(parser)


def _configure_migrating(parser: ArgumentParser) -> None:
    package_and_only(parser)
    limits(parser)


def _configure_reset(parser: ArgumentParser) -> None:
    _configure_drop(parser)
    limits(parser)


def _configure_drop(parser: ArgumentParser) -> None:
    _configure_destructive(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal to ask on")
    parser.add_argument("--force-connections", action="store_true", help="end the connections that others have")


def _ask_and_drop(call: Call) -> int:
    name, verb = call.arguments.package, call.arguments.verb
    targets = verbs.existing(call.workspace, name, call.options, verb)
    if targets and not call.arguments.yes:
        names = ", ".join(f"{target.database} ({target.url})" for target in targets)
        if not call.output.ask(f"{verb} destroys all data of {names}. Go on?"):
            call.output.error(f"atriz: nothing was done. Say yes, or give --yes to {verb} without being asked.")
            return 2
    ends = call.arguments.force_connections
    run = getattr(verbs, verb)
    outcomes = run(call.workspace, name, call.options, call.output.report, force_connections=ends)
    # What was dropped need not be dropped again.
    return call.output.finish(outcomes, " ".join(filter(None, ["atriz setup", name])))


def _configure_rollback(parser: ArgumentParser) -> None:
    _configure_destructive(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--count", type=_positive, default=1, metavar="N", help="how many revisions to undo")
    group.add_argument("--to", metavar="REVISION", help="go back to this revision, which itself stays; or to base")
    limits(parser)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of revisions, 1 or more")
    return int(text)


def _rollback(call: Call) -> int:
    given = call.arguments
    name = one_package(call, "rollback")
    return call.output.finish(
        verbs.rollback(call.workspace, name, call.options, call.output.report, count=given.count, to=given.to)
    )


def _configure_grant(parser: ArgumentParser) -> None:
    package_and_only(parser)
    parser.add_argument("--rotate", action="store_true", help="give every role that signs in a new password")
    parser.add_argument(
        "--whole-server",
        action="store_true",
        help="let PUBLIC connect to no other database of the server either: it is this repository's alone",
    )


def _grant(call: Call) -> int:
    given = call.arguments
    outcomes = verbs.grant(
        call.workspace,
        given.package,
        call.options,
        call.output.report,
        rotate=given.rotate,
        whole_server=given.whole_server,
    )
    again = " ".join(filter(None, ["atriz grant", given.package, "--only" if call.options.only else ""]))
    return call.output.finish(outcomes, again)


VERBS: Mapping[str, Verb] = {
    "setup": Verb(
        "Create, migrate and seed: from nothing to working; on what is there, only what is missing.",
        _on_fleet,
        _configure_migrating,
        "examples:\n  atriz setup\n  atriz setup mextrack     core first, then mextrack",
    ),
    "create": Verb(
        "Make the databases that are not there yet, and label them.",
        _on_fleet,
        package,
        "examples:\n  atriz create\n  atriz create core",
    ),
    "migrate": Verb(
        "Bring databases to head: core first, then the apps side by side.",
        _on_fleet,
        _configure_migrating,
        "A missing database is created first, but for production.\n\n"
        "examples:\n  atriz migrate\n  atriz migrate mextrack          core to head first\n"
        "  atriz migrate mextrack --only   mextrack alone",
    ),
    "rollback": Verb(
        "Undo the newest revision of one package, or several, after naming them.",
        _rollback,
        _configure_rollback,
        "examples:\n  atriz rollback mextrack\n  atriz rollback mextrack --count 2\n"
        "  atriz rollback mextrack --to base",
    ),
    "seed": Verb(
        "Run the seed files, in alphabetical order, one transaction each; skipped in production.",
        _on_fleet,
        package,
        "examples:\n  atriz seed\n  atriz seed pshop",
    ),
    "clean": Verb(
        "Empty every table and restart every sequence; structure and history stay.",
        _on_fleet,
        _configure_destructive,
        "examples:\n  atriz clean pshop && atriz seed pshop\n  atriz clean",
    ),
    "reset": Verb(
        "Drop, create, migrate and seed; asks first.",
        _ask_and_drop,
        _configure_reset,
        "examples:\n  atriz reset pshop\n  atriz reset --yes",
    ),
    "drop": Verb(
        "Remove the databases, core's last; asks first.",
        _ask_and_drop,
        _configure_drop,
        "examples:\n  atriz drop pshop\n  atriz drop --yes --force-connections",
    ),
    "grant": Verb(
        "Give each database an owner, and each application a role that may do what it needs and no more.",
        _grant,
        _configure_grant,
        "Run it as the server's administrator, then `atriz env --write`: applications sign in by their own role,\n"
        "migrations by the owner's. On what is there it changes only what is otherwise than it should be.\n\n"
        "examples:\n  atriz grant\n  atriz grant mextrack --rotate && atriz env --write mextrack",
    ),
}
