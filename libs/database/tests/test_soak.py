"""Runs that are stopped at random moments: whatever the moment, the next run finishes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter

import pytest
from tree import Tree

_CATALOG = """
    SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT revision, direction::"char" FROM atriz.history ORDER BY 1, 2
"""


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_stopped_at_any_moment_it_says_so_and_the_next_run_finishes(tree: Tree, number: signal.Signals) -> None:
    """Forty times: a run is stopped somewhere, leaves no process, and in the end all is as if none had been."""
    _stop_and_finish(tree, number, times=40, seed=int(os.environ.get("ATRIZ_SEED", "1")))


@pytest.mark.gate
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_stopped_at_a_few_moments(tree: Tree, number: signal.Signals) -> None:
    """The same, a seeded few times."""
    _stop_and_finish(tree, number, times=5, seed=number)


def _stop_and_finish(tree: Tree, number: signal.Signals, *, times: int, seed: int) -> None:
    moments = random.Random(seed)
    for name in ("core", "left", "right"):
        tree.add(name, revisions=3)
        tree.seed(
            name,
            "001_rows.py",
            f"connection.execute('INSERT INTO {name}_1 SELECT 1 WHERE NOT EXISTS (SELECT FROM {name}_1)')",
        )
    next_number = 4
    said: Counter[str] = Counter()
    for _ in range(times):
        process = tree.start("setup")
        moment = moments.uniform(0.0, 0.9)
        try:
            output, errors = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            output, errors = process.communicate(timeout=30)
            # Until `main` runs, it is Python that is starting, and Python that complains.
            assert "Traceback" not in errors or "in main" not in errors, (moment, errors)
        said.update(line.split()[0] for line in output.splitlines() if "  applied  " in line)
        if process.returncode == 0:
            # It was done before the moment came: there is more to do for the next.
            for name in tree.folders:
                tree.revise(name, next_number)
            next_number += 1
    done = tree.atriz("setup")
    assert done.returncode == 0, done.stderr
    said.update(line.split()[0] for line in done.stdout.splitlines() if "  applied  " in line)
    if number != signal.SIGKILL:
        # What was applied was said, whatever moment the signal came at.
        assert said == Counter(dict.fromkeys(tree.folders, next_number - 1))
    for name in tree.folders:
        expected = [(f"{name}_{i}", "r") for i in range(1, next_number)] + [
            (f"{name}{i:04}", "u") for i in range(1, next_number)
        ]
        found = [row for row in tree.rows(name, _CATALOG) if "alembic_version" not in row[0]]
        assert found == sorted(expected)
        assert tree.rows(name, f"SELECT count(*) FROM {name}_1") == [(1,)]
