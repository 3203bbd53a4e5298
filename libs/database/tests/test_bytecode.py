"""Revisions and seeds that are changed are run as they are now, however soon they are run."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
from tree import Tree

from atriz_database import seeds
from atriz_database.migrations import commands

_SECOND = 1_700_000_000


@pytest.fixture(autouse=True)
def _keeps_byte_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", False)


def _revision(path: Path) -> Callable[[Any], object]:
    seed: Callable[[Any], object] = commands._module(str(path), path.stem).seed
    return seed


def _write(path: Path, answer: int, after: float) -> None:
    """Write a file that says so, as if so long after a certain second."""
    path.write_text(f"def seed(connection):\n    return {answer}\n")
    _touch(path, after)


def _touch(path: Path, after: float) -> None:
    nanoseconds = int((_SECOND + after) * 1e9)
    os.utime(path, ns=(nanoseconds, nanoseconds))


@pytest.mark.parametrize("load", [_revision, seeds.load])
@pytest.mark.parametrize(("changed", "answer"), [(0.75, 2), (0.25, 1)], ids=["after", "before"])
def test_a_change_within_the_second_of_a_run_is_seen(
    tmp_path: Path, load: Callable[[Path], Any], changed: float, answer: int
) -> None:
    """Also where the file is as long as before, which is all that Python looks at; younger byte code is used."""
    path = tmp_path / "0001_first.py"
    _write(path, 1, 0.25)
    assert load(path)(None) == 1
    _touch(Path(cache_from_source(str(path))), 0.5)
    _write(path, 2, changed)
    assert load(path)(None) == answer


def test_a_way_back_that_is_mended_within_the_second_is_taken(tree: Tree) -> None:
    """Alembic loads the files for that, as Python does."""
    tree.add("left", requires=(), revisions=2)
    tree.at_head()
    path = next(tree.folders["left"].rglob("0002*.py"))
    right = path.read_text()
    path.write_text(right.replace("DROP TABLE", "DROP TABEL"))
    _touch(path, 0.25)
    assert tree.atriz("rollback", "left", PYTHONDONTWRITEBYTECODE="").returncode == 1
    _touch(Path(cache_from_source(str(path))), 0.5)
    path.write_text(right)
    _touch(path, 0.75)
    done = tree.atriz("rollback", "left", PYTHONDONTWRITEBYTECODE="")
    assert done.returncode == 0, done.stderr
