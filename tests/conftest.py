"""Fixtures for what spans packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clone import cloned


@pytest.fixture
def fresh_clone() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the folder of a fresh clone, and an environment with an empty home that says nothing of databases."""
    with cloned() as made:
        yield made.root, made.environ
