"""Arguments that several verbs have."""

from __future__ import annotations

from argparse import ArgumentParser

from atriz_database.cli.verb import Call
from atriz_database.errors import WorkspaceError


def package(parser: ArgumentParser) -> None:
    """Add the package, all where it is left out."""
    parser.add_argument("package", nargs="?", metavar="PACKAGE", help="the folder's name of one package (default: all)")


def package_and_only(parser: ArgumentParser) -> None:
    """Add the package, which brings along what it depends on, and the option not to."""
    package(parser)
    parser.add_argument("--only", action="store_true", help="leave out what PACKAGE depends on")


def force(parser: ArgumentParser) -> None:
    """Add the option that lets a verb at production."""
    parser.add_argument(
        "--force",
        action="append",
        metavar="DATABASE",
        help="the exact name of a database to do this to though it is production's; may be given several times",
    )


def one_package(call: Call, verb: str) -> str:
    """Return the package that a verb was given, which is for one package at a time.

    Raise `WorkspaceError` if it was given none.
    """
    name: str | None = call.arguments.package
    if name is None:
        names = [package.name for package in call.workspace.select(None)]
        sessions = ", ".join(f"nox -s {verb}:{name}" for name in names)
        raise WorkspaceError(f"{verb} is for one package at a time: atriz {verb} PACKAGE, or {sessions}.")
    return name
