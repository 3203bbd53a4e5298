"""Verbs for whoever writes revisions and looks after labels."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict

from atriz_database import verbs
from atriz_database.cli.arguments import force, one_package, package
from atriz_database.cli.verb import Call, Verb
from atriz_database.label import Label
from atriz_database.settings import ENVIRONMENTS


def _configure_new(parser: ArgumentParser) -> None:
    package(parser)
    parser.add_argument("message", nargs="?", default="", metavar="MESSAGE", help="what it does; the file is named so")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--empty", action="store_true", help="write one without a body; needs no database")
    group.add_argument("--sql", action="store_true", help="write one whose body is a .sql file; needs no database")
    group.add_argument("--allow-drop", action="store_true", help="let it drop tables that no revision made")


def _new(call: Call) -> int:
    given = call.arguments
    outcomes = verbs.new(
        call.workspace,
        one_package(call, "new"),
        given.message,
        call.options,
        call.output.report,
        empty=given.empty,
        as_sql=given.sql,
        allow_drop=given.allow_drop,
    )
    return call.output.finish(outcomes)


def _configure_stamp(parser: ArgumentParser) -> None:
    package(parser)
    parser.add_argument("revision", nargs="?", metavar="REVISION", help="a revision's id, or head (default: found out)")
    parser.add_argument("--yes", action="store_true", help="stamp what was found out without being asked")


def _stamp(call: Call) -> int:
    name = one_package(call, "stamp")
    revision = call.arguments.revision
    if revision is None:
        revision = _found_out(call, name)
    if revision is None:
        return 3
    return call.output.finish(verbs.stamp(call.workspace, name, revision, call.options, call.output.report))


def _found_out(call: Call, name: str) -> str | None:
    """Return the revision that the database's catalog says, if it says one and the user wants it."""
    match = verbs.matching(call.workspace, name, call.options)
    if not match.equal:
        for difference in match.differences:
            call.output.text(str(difference))
        call.output.error(
            f"atriz: {name} was not stamped: no revision leaves a database like this one"
            + (f"; {match.nearest} comes nearest, with the differences above" if match.nearest else "")
            + ". Name a revision to stamp it all the same."
        )
        return None
    # The newest of several that are equal: those above the first change rows only.
    revision = match.equal[-1]
    others = f" (so do {', '.join(match.equal[:-1])})" if match.equal[:-1] else ""
    if call.arguments.yes or call.output.ask(f"{revision} leaves a database just like this one{others}. Stamp it?"):
        return revision
    call.output.error(
        f"atriz: {name} was not stamped. {revision} leaves a database just like this one{others}: say yes, give --yes, "
        f"or run `atriz stamp {name} {revision}`."
    )
    return None


def _configure_repair(parser: ArgumentParser) -> None:
    package(parser)
    parser.add_argument("--yes", action="store_true", help="accept the files as they stand now")


def _repair(call: Call) -> int:
    name = one_package(call, "repair")
    edits = verbs.edits(call.workspace, name, call.options)
    if call.arguments.yes or not edits:
        return call.output.finish(verbs.repair(call.workspace, name, call.options, call.output.report))
    if call.output.as_json:
        call.output.document([asdict(edit) for edit in edits])
        return 3
    for edit in edits:
        call.output.text(f"{edit.revision} ({edit.path.name}) was edited after it was applied:")
        call.output.text(edit.diff)
    call.output.error(
        f"atriz: {len(edits)} edited revisions of {name}. Put the files back, or accept them as they are with --yes; "
        "the database is not touched either way."
    )
    return 3


def _configure_label(parser: ArgumentParser) -> None:
    package(parser)
    parser.add_argument("--environment", choices=ENVIRONMENTS, help="the environment that it shall belong to")
    parser.add_argument("--package", dest="owner", metavar="OWNER", help="the package that it shall belong to")
    force(parser)


def _label(call: Call) -> int:
    given = call.arguments
    if given.environment is None and given.owner is None:
        found = verbs.labels(call.workspace, given.package, call.options)
        if call.output.as_json:
            document = [
                {"package": target.package.name, "database": target.database, "label": label and asdict(label)}
                for target, label in found
            ]
            call.output.document(document)
            return 0
        rows = [(target.package.name, target.database, str(label or "none")) for target, label in found]
        call.output.table(("package", "database", "label"), rows)
        return 0
    name = one_package(call, "label")
    ((_, before),) = verbs.labels(call.workspace, name, call.options)
    environment = given.environment or (before.environment if before else "development")
    wanted = Label(given.owner or (before.package if before else name), environment)
    old, new = verbs.relabel(call.workspace, name, wanted, call.options)
    if call.output.as_json:
        call.output.document({"before": old and asdict(old), "after": asdict(new)})
    call.output.text(f"{name}: {old or 'no label'} -> {new}")
    return 0


VERBS: Mapping[str, Verb] = {
    "new": Verb(
        "Write a revision of one package, from the difference between its models and its database.",
        _new,
        _configure_new,
        'examples:\n  atriz new pshop "add supplier to products"\n  atriz new pshop "count the stock" --sql',
    ),
    "stamp": Verb(
        "Say that a database is at a revision, without running anything; finds out which.",
        _stamp,
        _configure_stamp,
        "For a database that something else has made.\n\nexamples:\n  atriz stamp pshop\n  atriz stamp pshop head",
    ),
    "repair": Verb(
        "Show how applied revisions were edited since, and accept them with --yes.",
        _repair,
        _configure_repair,
        "examples:\n  atriz repair mextrack\n  atriz repair mextrack --yes",
    ),
    "label": Verb(
        "Show or change what a database says of itself: its package and environment.",
        _label,
        _configure_label,
        "examples:\n  atriz label\n  atriz label pshop --environment development --force pshop_db",
    ),
}
