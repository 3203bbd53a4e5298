"""Topic testing: what a test pays for a database, by the plugin's fixtures, by plain SQL, and by migrating each time.

In one run of pytest the ways take turns: a ratio is one turn's to the other's of the same round.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import workload
from benchmarks.case import Case, Mark, Options, ratio
from benchmarks.clones import BY_ALEMBIC, CLONED, RAW, WAYS
from benchmarks.cluster import ROOT, Cluster
from benchmarks.measure import Entry, Sample

# Where a turn takes milliseconds there are more of them.
_TURNS_A_ROUND = {500: 1}
_OTHER_TURNS = 3
_MEMORY_BYTES = 2 * 1024**3


def cases(cluster: Cluster, options: Options) -> Iterator[Case]:
    """Measure the cases and yield each as it is done."""
    # The package of this repository with the most in its database, and some with longer histories.
    sizes = (0, *options.sizes(50, 500))
    with _memory() as memory:
        for name, environ, measured in (
            # Where `nox -s tests` has it.
            ("test database, embedded server in memory", {"ATRIZ_SERVER_HOME": str(memory)} if memory else None, sizes),
            ("test database, embedded server on disk", {"ATRIZ_SERVER_HOME": str(cluster.folder / "own")}, sizes),
            ("test database, a server that is named", cluster.environ, (0,)),
        ):
            if environ is not None and options.wants(name):
                yield _case(cluster, options, name, environ, measured)


@contextmanager
def _memory() -> Iterator[Path | None]:
    """Yield a folder in memory, `None` where there is no room, and remove it."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < _MEMORY_BYTES:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="atriz-bench-", dir=memory) as folder:
        Path(folder).chmod(0o755)  # The server runs as another user where this one is root.
        yield Path(folder) / "server"


def _case(cluster: Cluster, options: Options, name: str, environ: Mapping[str, str], sizes: Sequence[int]) -> Case:
    entries: dict[tuple[str, int], Entry] = {}
    marks = []
    for size in sizes:
        options.progress(f"{name}: M={size or 'this repository'}")
        folder = _workspace(cluster, size) if size else ROOT / "apps" / "mextrack"
        table = workload.history(folder.name, 1)[0].sql.split()[2] if size else "vehicles"
        turns = 1 if options.quick else options.rounds * _TURNS_A_ROUND.get(size, _OTHER_TURNS)
        measured = _measure(folder, table, turns, environ)
        for way in WAYS:
            entries[way, size] = Entry(way, size, (), _nothing, _nothing)
            if isinstance(measured, str):
                entries[way, size].failure = measured
                continue
            samples = ((number, Sample(seconds, 0.0, 0, None)) for number, seconds in enumerate(measured[way], 1))
            entries[way, size].samples.update(samples)
        where = f"M={size}" if size else "this repository"
        mine = entries[CLONED, size]
        marks.append(Mark(f"{where}: at most 1.2 x floor A", 1.2, ratio(mine, entries[RAW, size])))
        rival = entries[BY_ALEMBIC, size]
        marks.append(Mark(f"{where}: at most 0.1 x {BY_ALEMBIC}", 0.1, ratio(mine, rival)))
    return Case(name, list(entries.values()), marks)


def _nothing() -> None:
    """Leave all as it is."""


def _workspace(cluster: Cluster, size: int) -> Path:
    root = cluster.folder / "testing" / str(size)
    if not root.exists():
        workload.write_workspace(root, size, dict.fromkeys(workload.PACKAGES, "unused"), {})
    return next(root.glob(f"*/{workload.PACKAGES[-1]}"))


def _measure(folder: Path, table: str, rounds: int, environ: Mapping[str, str]) -> dict[str, list[float]] | str:
    """Return the seconds of each way's turns, or why there are none."""
    needed = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", **environ}
    words = [sys.executable, "-m", "benchmarks.clones", str(rounds), str(folder), table]
    done = subprocess.run(words, cwd=ROOT, env=needed, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return f"failed: {lines[-1] if lines else 'it said nothing'}"
    measured: dict[str, list[float]] = json.loads(done.stdout)
    return measured
