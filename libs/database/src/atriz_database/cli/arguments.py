"""Arguments that several verbs have."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

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


def limits(parser: ArgumentParser) -> None:
    """Add how long a revision may wait and take."""
    group = parser.add_argument_group("limits of each revision")
    group.add_argument(
        "--lock-timeout",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long a statement waits for a lock, others queueing behind it; 0 is without end",
    )
    group.add_argument(
        "--statement-timeout",
        type=seconds,
        metavar="SECONDS",
        help="how long a statement may take; 0 is without end (default: as the server has it)",
    )
    group.add_argument(
        "--retries",
        type=_times,
        default=5,
        metavar="N",
        help="how often a revision is tried again that did not get a lock or met a deadlock",
    )


def seconds(text: str) -> float:
    """Return a duration given on the command line, in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def _times(text: str) -> int:
    if not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not a number of times, 0 or more")
    return int(text)


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
