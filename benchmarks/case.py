"""Cases with their marks, and what a run of benchmarks was asked for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import measure
from benchmarks.measure import Entry


@dataclass(frozen=True, slots=True)
class Mark:
    """A figure that is to be reached, and what was measured."""

    text: str
    limit: float
    measured: float | None
    """`None` where a contender that it takes failed."""
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """``reached``, or by how much it was missed."""
        if self.measured is None:
            return "not measured"
        excess = self.measured - self.limit
        return "reached" if excess <= 0 else f"missed by {excess:.2f} {self.unit}"


@dataclass(frozen=True, slots=True)
class Case:
    """A case that was measured."""

    name: str
    entries: Sequence[Entry]
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Options:
    """What a run was asked for."""

    rounds: int
    quick: bool
    """One round with five revisions, to see that everything works."""
    peers: bool
    """Whether the peers take part."""
    only: str
    """A part of the names of the cases to run; empty for all."""
    progress: Callable[[str], None]
    """Gets a line before anything that takes a while."""
    big: bool = False
    """Whether to measure with tables that take minutes to fill, too."""

    def wants(self, name: str) -> bool:
        """Whether the case of that name is to be run."""
        return self.only in name

    def sizes(self, *sizes: int) -> tuple[int, ...]:
        """Return the numbers of revisions to run a case with."""
        return (5,) if self.quick else sizes

    def measure(self, name: str, entries: Sequence[Entry]) -> None:
        """Run the entries of a case in rounds."""
        measure.in_rounds(entries, self.rounds, lambda text: self.progress(f"{name}: {text}"), warm_up=not self.quick)


def ratio(mine: Entry, theirs: Entry) -> float | None:
    """Return the median of the rounds' ratios of wall times, `None` where one of the two failed."""
    return None if mine.failure or theirs.failure else statistics.median(mine.ratios(theirs))


def difference(mine: Entry, theirs: Entry) -> float | None:
    """Return the median of the rounds' differences in seconds, `None` where one of the two failed."""
    return None if mine.failure or theirs.failure else statistics.median(mine.differences(theirs))


def memory(mine: Entry, theirs: Entry) -> float | None:
    """Return how the peaks of the biggest processes compare, `None` where one of the two failed."""
    return None if mine.failure or theirs.failure else mine.biggest / theirs.biggest
