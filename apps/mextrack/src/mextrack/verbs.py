"""What mextrack adds to the ``atriz`` command."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from functools import partial

from atriz_database import databases, label
from atriz_database.cli.verb import Call, Verb
from atriz_database.fleet import Act, Report
from atriz_database.settings import Target
from mextrack.partitions import make_months


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ahead", type=_months, default=3, metavar="MONTHS", help="how many months after this one")


def _months(text: str) -> int:
    if not text.isdigit() or int(text) > 120:
        raise argparse.ArgumentTypeError(f"{text} is not a number of months from 0 to 120")
    return int(text)


def _make(ahead: int, target: Target, report: Report) -> None:
    started = time.perf_counter()
    with databases.connect(target, purpose="partitions") as connection:
        label.check(target, label.read(connection))
        made = make_months(connection, ahead, datetime.now(UTC).date())
    what, names = ("partitioned", ", ".join(made)) if made else ("up to date", "")
    report(Act(target.package.name, target.database, what, names, seconds=time.perf_counter() - started))


def _run(call: Call) -> int:
    from atriz_database import verbs

    task = partial(_make, call.arguments.ahead)
    return call.output.finish(verbs.on_each(call.workspace, "mextrack", task, call.options, call.output.report))


partitions = Verb(
    "Make the monthly partitions of mextrack's tracking_data, this month's and those after it.",
    _run,
    _configure,
    "Run it from a daily job, as the owner of the tables. Rows of a month that has no partition yet are in the\n"
    "DEFAULT partition, and move when it is made.\n\n"
    "examples:\n  atriz partitions\n  atriz partitions --ahead 12",
)
