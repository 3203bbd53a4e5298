"""What a contender is: how it is given its revisions, how it is started, and where it says a database stands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.cluster import Cluster
from benchmarks.measure import Command, Stages
from benchmarks.workload import PACKAGES

PROGRAMS = Path(sys.executable).parent
"""The environment that this runs in, of which the programs of Python are taken."""

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender works: a folder that is not there yet, and databases that nobody else has."""

    cluster: Cluster
    folder: Path
    databases: Mapping[str, str]
    """The database's name of each package."""

    def url(self, package: str) -> str:
        """Return the URL of a package's database."""
        return self.cluster.url(self.databases[package]).text(secrets=True)

    def command(
        self, program: Path, *arguments: str, folder: Path | None = None, environ: Mapping[str, str] = _NONE
    ) -> Command:
        """Return a command in an environment that says nothing but what every process needs.

        :param folder: where it runs, the place's own if not given.
        :param environ: more variables.
        """
        home = self.cluster.folder / "home"
        home.mkdir(exist_ok=True)
        needed = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **environ}
        return Command((str(program), *arguments), folder or self.folder, needed)


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to bring four databases to head."""

    name: str
    write: Callable[[Place, int], Stages]
    """Writes a number of revisions for each database into a place, and returns what to run there.

    Raises `UnavailableError` where this machine cannot run it.
    """
    version: str = ""
    """A query that returns what the contender has recorded in a database; empty where it records nothing."""
    recorded: Callable[[str, int], str] = lambda package, count: ""
    """Returns what that query must give for a package at a number of revisions."""
    looks: bool = True
    """Whether it can tell that there is nothing to do."""


def one_after_the_other(make: Callable[[str], Command]) -> Stages:
    """Return a command for each package, run in turn."""
    return tuple((make(package),) for package in PACKAGES)


def side_by_side(make: Callable[[str], Command]) -> Stages:
    """Return a command for each package, run at once."""
    return (tuple(make(package) for package in PACKAGES),)
