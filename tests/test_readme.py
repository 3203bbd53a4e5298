"""The README's first screen does what it says, on a machine that has Python and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gate

ROOT = Path(__file__).parent.parent
SET_UP, TEST = (
    line.partition("  #")[0].strip()
    for line in re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1].strip().splitlines()
)


def test_the_second_command_runs_the_tests() -> None:
    """It is what the gate runs, so it is not run here again."""
    assert TEST == "nox -s tests"
    assert TEST in (ROOT / ".ci" / "run").read_text()


def test_the_first_command_sets_everything_up(tmp_path: Path, fresh_clone: tuple[Path, dict[str, str]]) -> None:
    """In an empty home, with a Python that has pip and nothing more: four created, migrated, seeded databases."""
    root, environ = fresh_clone
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "python"], check=True)
    environ = {**environ, "PATH": f"{tmp_path / 'python' / 'bin'}{os.pathsep}{os.defpath}"}
    done = subprocess.run(SET_UP, shell=True, cwd=root, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 databases created" in done.stdout
    again = subprocess.run("nox -s status -- --exit-code", shell=True, cwd=root, env=environ, capture_output=True)
    assert again.returncode == 0
