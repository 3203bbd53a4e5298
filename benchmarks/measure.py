"""Runs of commands: what they took, in rounds in which every contender has its turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LAUNCH = Path(__file__).with_name("launch.py")


class RunError(Exception):
    """A run that did not do what was to be measured; the text is one line."""


class UnavailableError(Exception):
    """A contender that this machine cannot run; the text is one line that says what is missing."""


@dataclass(frozen=True, slots=True)
class Command:
    """One process to start."""

    words: tuple[str, ...]
    """The program, by its path, and its arguments."""
    folder: Path
    environ: Mapping[str, str]


Stages = tuple[tuple[Command, ...], ...]
"""What one run starts: stages one after the other, the commands of a stage side by side."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took, as a whole."""

    seconds: float
    """Wall time from the first command's start to the last one's end."""
    processor: float
    """Seconds of a core that all processes used together, the server's not among them."""
    biggest: int
    """Bytes at the peak of the biggest single process (resident set)."""
    tree: int | None
    """Bytes at the peak of all processes together (proportional set size), where the run was sampled for it."""


@dataclass(slots=True)
class Entry:
    """One contender of a case, with what has been measured of it."""

    contender: str
    revisions: int
    """Of each database."""
    stages: Stages
    prepare: Callable[[], None]
    """Called before each run, outside the time that is taken: brings the databases to where the case begins."""
    check: Callable[[], None]
    """Called after each run, likewise; raises `RunError` if the databases are not where the case ends."""
    every: int = 1
    """In which rounds it takes part: every third, say."""
    samples: dict[int, Sample] = field(default_factory=dict)
    """What each round took, by the round's number."""
    tree: int | None = None
    """Bytes, as in `Sample`."""
    failure: str = ""
    """Why nothing was measured (``failed: …``, ``skipped: …``); empty where all went well."""

    @property
    def seconds(self) -> float:
        """The median of the runs' wall times."""
        return statistics.median(sample.seconds for sample in self.samples.values())

    @property
    def processor(self) -> float:
        """The median of the runs' processor times."""
        return statistics.median(sample.processor for sample in self.samples.values())

    @property
    def biggest(self) -> float:
        """The median of the runs' peaks, in bytes."""
        return statistics.median(sample.biggest for sample in self.samples.values())

    def ratios(self, other: Entry) -> list[float]:
        """Return this one's wall time in units of the other's, round by round."""
        return [mine.seconds / theirs.seconds for mine, theirs in self._pairs(other)]

    def differences(self, other: Entry) -> list[float]:
        """Return by how many seconds this one took longer than the other, round by round."""
        return [mine.seconds - theirs.seconds for mine, theirs in self._pairs(other)]

    def _pairs(self, other: Entry) -> list[tuple[Sample, Sample]]:
        return [(sample, other.samples[number]) for number, sample in self.samples.items() if number in other.samples]


def in_rounds(entries: Sequence[Entry], rounds: int, progress: Callable[[str], None], *, warm_up: bool = True) -> None:
    """Run every entry once in each round that it takes part in, and note what it took.

    The order rotates, and every other round goes backwards: nobody has always the same one before it.

    What drifts on the machine (its disk above all) falls on all entries of a round alike. One that fails is left out
    of the rounds that follow.

    :param rounds: how many are timed.
    :param progress: gets a line before each run.
    :param warm_up: whether an untimed round goes before, which fills caches and is sampled for the memory of whole
        trees; without it the first round is sampled, and timed all the same.
    """
    for number in range(1 - warm_up, rounds + 1):
        start = number % len(entries)
        order = (*entries[start:], *entries[:start])
        for entry in order if number % 2 else reversed(order):
            if entry.failure or (number > 1 and number % entry.every != 1 % entry.every):
                continue
            progress(
                f"{f'round {number} of {rounds}' if number else 'warm-up'}: {entry.contender}, M={entry.revisions}"
            )
            sampling = number == 1 - warm_up
            try:
                entry.prepare()
                sample = run(entry.stages, sampling=sampling)
                entry.check()
            except RunError as error:
                entry.failure = f"failed: {error}"
                entry.samples.clear()
                continue
            if sampling:
                entry.tree = sample.tree
            if number > 0:
                entry.samples[number] = sample


def run(stages: Stages, *, sampling: bool = False) -> Sample:
    """Run the commands and return what they took together.

    :param sampling: whether to look at the memory of all processes every few milliseconds, which costs time itself.

    Raise `RunError` with the last line of the output if a command fails. Whatever ends this call early ends what it
    started, too.
    """
    with tempfile.NamedTemporaryFile() as output:
        stated = [
            [{"words": each.words, "folder": str(each.folder), "environ": dict(each.environ)} for each in stage]
            for stage in stages
        ]
        given = json.dumps({"stages": stated, "sampling": sampling, "output": output.name})
        launched = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, complaint = launched.communicate(given)
        except BaseException:
            _end(launched)
            raise
        if launched.returncode != 0:
            raise RunError(f"the launcher failed: {_last_line(complaint)}")
        took = json.loads(said)
        if took["status"] != 0:
            text = output.read().decode(errors="replace")
            raise RunError(f"status {took['status']}: {_last_line(text)}")
    return Sample(took["seconds"], took["processor"], took["biggest"], took["tree"])


def _end(launched: subprocess.Popen[str]) -> None:
    """End all that a run has started; what it leaves in its databases is thrown away."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launched.pid, signal.SIGKILL)
    launched.wait()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
