"""Reads the command line, calls the verb, and turns errors into one message and an exit status."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psycopg

from atriz_database import databases, workspace
from atriz_database.cli.arguments import seconds
from atriz_database.cli.builtin import VERBS
from atriz_database.cli.output import Output
from atriz_database.cli.verb import Call, Verb
from atriz_database.errors import AtrizError, ServerError, WorkspaceError
from atriz_database.run import Options

_DESCRIPTION = "Create, migrate, seed and look after the databases of this repository, core first."
_EPILOG = """\
A package is called by its folder's name; without one a verb means all of them, in the order of the graph.

examples:
  atriz setup                 from nothing to four working databases
  atriz migrate mextrack      core to head, then mextrack
  atriz status --json         where every database stands, for a program
  atriz VERB --help           everything about one verb

exit status:
  0 done   1 it failed   2 wrong usage or settings   3 a check found something
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with `arguments`, and return its exit status."""
    try:
        status = _call(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away, as in `atriz status | head -1`; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        print(f"atriz: the output could not be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    return status


def _call(arguments: Sequence[str]) -> int:
    name = next((word for word in arguments if not word.startswith("-")), None)
    verbs = VERBS if name in VERBS else {**VERBS, **_added()}
    if name is not None and name not in verbs:
        near = difflib.get_close_matches(name, verbs, n=1)
        did_you_mean = f" Did you mean {near[0]}?" if near else ""
        return _misused(arguments, f"There is no verb {name!r}.{did_you_mean} `atriz --help` lists them.")
    try:
        parsed, rest = _parser(verbs, only=name).parse_known_args(arguments)
        if rest:
            of = f"atriz {name}" if name else "atriz"
            raise _UsageError(f"unrecognized arguments: {' '.join(rest)}. `{of} --help` lists what it takes.")
    except _UsageError as error:
        return _misused(arguments, str(error))
    if parsed.verb is None:
        _parser(verbs).print_help()
        return 2
    output = Output(as_json=parsed.json, quiet=parsed.quiet)
    try:
        space = workspace.load(_root(parsed.root))
        output.align(space)
        force = tuple(getattr(parsed, "force", None) or ())
        options = Options(parsed.wait, parsed.lock_wait, getattr(parsed, "only", False), force, **_limits(parsed))
        return verbs[parsed.verb].run(Call(space, parsed, options, output))
    except AtrizError as error:
        if parsed.traceback:
            traceback.print_exc()
        return output.failure(error)
    except psycopg.Error as error:
        if parsed.traceback:
            traceback.print_exc()
        return output.failure(
            ServerError(f"The server said: {databases.said(error)}. What was not committed is rolled back.")
        )
    except KeyboardInterrupt:
        return output.failure(AtrizError("interrupted"))
    finally:
        output.close()


def _limits(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options that only the verbs have that run revisions."""
    names = ("lock_timeout", "statement_timeout", "retries")
    return {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}


def _misused(arguments: Sequence[str], text: str) -> int:
    return Output(as_json="--json" in arguments, quiet=False).failure(_UsageError(text))


class _UsageError(AtrizError):
    """The command line cannot be read."""

    status = 2


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print and exit, so that every failure is told in one way, as JSON too."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}. `{self.prog} --help` lists what it takes.")


def _root(given: Path | None) -> Path:
    """Return where to look for the repository: the folder that was given must be one itself."""
    if given is not None:
        if not (given / "pyproject.toml").is_file():
            raise WorkspaceError(f"--root {given} is not a repository: there is no {given / 'pyproject.toml'}.")
        return given
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise WorkspaceError(
            "The current folder is gone. Go into the repository, or give its folder with --root."
        ) from None


def _added() -> Mapping[str, Verb]:
    """Return the verbs that installed packages add."""
    from importlib.metadata import entry_points

    added: dict[str, Verb] = {}
    for point in entry_points(group="atriz.verbs"):
        if point.name in VERBS or point.name in added:
            raise SystemExit(f"atriz: {point.value} adds the verb {point.name!r}, which there is already. Rename it.")
        try:
            added[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            # A package that is installed and no longer there must not take the other verbs with it.
            added[point.name] = _broken(point.value, error)
    return added


def _broken(value: str, error: Exception) -> Verb:
    def run(call: Call) -> int:
        raise WorkspaceError(f"This verb cannot be loaded from {value}: {error}. Run `nox -s dev` to renew .venv.")

    return Verb(f"(cannot be loaded from {value})", run)


def _parser(verbs: Mapping[str, Verb], only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; with `only` the one verb that was called gets its options, which is quicker."""
    parser = _Parser(
        prog="atriz", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(verb=None)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    for name, verb in verbs.items():
        if only is not None and name != only:
            continue
        child = parsers.add_parser(
            name, help=verb.summary, description=verb.summary, epilog=verb.details, formatter_class=_Formatter
        )
        verb.configure(child)
        _add_common(child)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of every verb")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
    group.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    group.add_argument(
        "--wait", type=seconds, default=0.0, metavar="SECONDS", help="try again this long while a server is down"
    )
    group.add_argument(
        "--lock-wait",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="wait this long for another run that changes the same database",
    )
    group.add_argument("--root", type=Path, metavar="FOLDER", help="the repository (default: found from here upwards)")
    group.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")


class _Version(argparse.Action):
    """Prints the version; it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        parser.exit(0, f"atriz {version('atriz-database')}\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and says what an option is without being given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if not action.option_strings or "(default" in text or isinstance(action, argparse._HelpAction):
            return text
        default: Any = action.default
        shown = (
            "off"
            if default is False
            else "none"
            if default is None
            else f"{default:g}"
            if isinstance(default, float)
            else default
        )
        return f"{text} (default: {shown})"
