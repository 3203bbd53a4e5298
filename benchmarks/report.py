"""What a run of benchmarks says in the end: Markdown tables to read and to keep, or one JSON document."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.case import Case, ratio
from benchmarks.cluster import Cluster, file_system, lacks_journal
from benchmarks.measure import Entry

_MEGABYTE = 2**20
_WIDTH = 160


def machine(cluster: Cluster) -> dict[str, str]:
    """Return what the figures depend on beside the programs."""
    settings = cluster.settings()
    load = os.getloadavg()[0]
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {platform.system()} {platform.release()}",
        "disk": f"{_disk(cluster.folder)}; a commit of one row takes {1000 * cluster.commit_seconds():.2f} ms",
        "folder": str(cluster.folder),
        "python": f"{platform.python_version()}; some plain code takes {1000 * _plain_seconds():.0f} ms",
        "postgresql": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "load": f"{load:.2f} at the beginning, by whatever else runs here",
    }


def _disk(folder: Path) -> str:
    kind = file_system(folder)
    if not lacks_journal(folder):
        return kind
    return f"{kind} without a journal, where dropped databases slow new ones down (TMPDIR=FOLDER measures elsewhere)"


def _plain_seconds() -> float:
    """Return what this Python takes for some plain code: with one built without optimizations it is twice as much."""
    seconds = []
    for _ in range(5):
        began, words = time.perf_counter(), dict[int, str]()
        for number in range(100_000):
            words[number % 1000] = str(number)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def show(facts: dict[str, str], cases: Sequence[Case], rounds: int) -> None:
    """Print the tables."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    for name, value in facts.items():
        if name == "folder":  # gone by now
            continue
        console.print(f"- {name}: {value}", soft_wrap=True)
    console.print(
        f"- {rounds} {'round' if rounds == 1 else 'rounds'} in pairs; medians; peers in every third. A and B are "
        "the floors. CPU: seconds of a core, without the server's. MB: the biggest single process (resident). Sum: all "
        "processes together (proportional, sampled in the warm-up).\n",
        soft_wrap=True,
    )
    for case in cases:
        console.print(f"### {case.name}\n")
        for size in dict.fromkeys(entry.revisions for entry in case.entries):
            _print(console, _table(size, [entry for entry in case.entries if entry.revisions == size]))
    marks = Table("case", "mark", "measured", "", box=box.MARKDOWN)
    for case in cases:
        for mark in case.marks:
            value = "-" if mark.measured is None else f"{mark.measured:.2f} {mark.unit}"
            marks.add_row(case.name, mark.text, value, mark.verdict)
    console.print("### marks\n")
    _print(console, marks)


def _print(console: Console, table: Table) -> None:
    # The box has a blank line of spaces above and below.
    with console.capture() as captured:
        console.print(table)
    console.out(captured.get().strip(" \n"), end="\n\n")


def _table(size: int, entries: Sequence[Entry]) -> Table:
    table = Table(f"M={size:,}" if size else "", box=box.MARKDOWN)
    for name in ("seconds", "from - to", "x A", "from - to", "x B", "CPU", "MB", "sum"):
        table.add_column(name, justify="right")
    floor_a, floor_b = _floor(entries, "floor A:"), _floor(entries, "floor B:")
    for entry in entries:
        if entry.failure:
            table.add_row(f"{entry.contender} ({entry.failure})")
            continue
        seconds = [sample.seconds for sample in entry.samples.values()]
        table.add_row(
            entry.contender,
            _seconds(entry.seconds),
            f"{_seconds(min(seconds))} - {_seconds(max(seconds))}",
            _number(entry, floor_a),
            _range(entry, floor_a),
            _number(entry, floor_b),
            f"{entry.processor:.2f}" if entry.processor else "",
            f"{entry.biggest / _MEGABYTE:.0f}" if entry.biggest else "",
            f"{entry.tree / _MEGABYTE:.0f}" if entry.tree else "",
        )
    return table


def _seconds(value: float) -> str:
    """Return seconds with as many digits as say something, for what takes milliseconds as well."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _floor(entries: Iterable[Entry], name: str) -> Entry | None:
    return next((entry for entry in entries if entry.contender.startswith(name) and entry.samples), None)


def _number(entry: Entry, floor: Entry | None) -> str:
    value = None if floor is None else ratio(entry, floor)
    return "" if value is None else f"{value:.2f}"


def _range(entry: Entry, floor: Entry | None) -> str:
    ratios = [] if floor is None else entry.ratios(floor)
    return f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else ""


def document(facts: dict[str, str], cases: Sequence[Case]) -> dict[str, Any]:
    """Return all that was measured, sample by sample; sizes are bytes, times seconds."""
    return {
        "facts": facts,
        "cases": [
            {
                "case": case.name,
                "contenders": [
                    {
                        "contender": entry.contender,
                        "revisions": entry.revisions,
                        "failure": entry.failure or None,
                        "rounds": list(entry.samples),
                        "seconds": [sample.seconds for sample in entry.samples.values()],
                        "processor": [sample.processor for sample in entry.samples.values()],
                        "biggest": [sample.biggest for sample in entry.samples.values()],
                        "tree": entry.tree,
                    }
                    for entry in case.entries
                ],
                "marks": [
                    {"mark": mark.text, "limit": mark.limit, "measured": mark.measured, "verdict": mark.verdict}
                    for mark in case.marks
                ],
            }
            for case in cases
        ],
    }


def progress(text: str) -> None:
    """Tell what is being done, on one line that is written over; only at a terminal.

    nox leads standard error into standard output, where a line of it would spoil a table or a document in a file.
    """
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
