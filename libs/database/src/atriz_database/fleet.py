"""A run over several packages: in the order of the graph, side by side where it allows, a process for each.

Processes, because Alembic's contexts belong to a process; and each holds the lock of the database it changes on a
connection of its own, so that whatever ends the process also lets go of the database.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess

import psycopg

from atriz_database.errors import AtrizError
from atriz_database.settings import Target

# After fork, what the parent has imported is there at once. macOS's own libraries do not survive a fork.
_FORKS = sys.platform == "linux"
_PROCESSES: ForkContext | SpawnContext = (
    multiprocessing.get_context("fork") if _FORKS else multiprocessing.get_context("spawn")
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a worker gets to cancel its statement and roll back, before it is killed.
_GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that was done to one database."""

    package: str
    database: str
    what: str
    """A verb in the past: ``created``, ``applied``, ``seeded``; for a notice what takes a while."""
    subject: str = ""
    """What it was done to, if not the database: a revision's or a file's name."""
    detail: str = ""
    seconds: float = 0.0
    kind: str = "act"
    """``act``; ``warning``; ``notice``, a wait that everybody should know of; ``progress``, for a terminal only."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did to one package's database. A failure is a value here: the others go on."""

    package: str
    database: str
    state: str
    """``done``, ``failed``, ``not run`` or ``interrupted``."""
    acts: tuple[Act, ...] = ()
    error: str = ""
    """Why it failed or was not run."""
    seconds: float = 0.0
    status: int = 0
    """The exit status this outcome alone would give."""


Report = Callable[[Act], None]
"""Gets each act as it happens."""
Task = Callable[[Target, Report], None]
"""What is done to one database, in a process of its own. It raises an `AtrizError` if it fails."""


@dataclass(slots=True)
class _Worker:
    target: Target
    process: BaseProcess
    pipe: Connection
    started: float
    acts: list[Act] = field(default_factory=list)
    outcome: Outcome | None = None


def run(
    targets: Sequence[Target],
    task: Task,
    report: Report,
    *,
    failed: Mapping[str, AtrizError] | None = None,
) -> list[Outcome]:
    """Run `task` for each target, core first, independent ones side by side; return an outcome for each, in order.

    Ctrl-C and SIGTERM end the workers, each of which cancels its statement and rolls back; what they had done is in
    the outcomes, whose state is ``interrupted``.

    :param failed: packages that are known to fail, with the reason; they count as failed without being tried.
    """
    names = {target.package.name for target in targets}
    by_name = {target.package.name: target for target in targets}
    order = TopologicalSorter({name: names.intersection(target.package.requires) for name, target in by_name.items()})
    order.prepare()
    outcomes: dict[str, Outcome] = {}
    workers: dict[Connection, _Worker] = {}

    def finish(outcome: Outcome) -> None:
        outcomes[outcome.package] = outcome
        order.done(outcome.package)

    try:
        while order.is_active():
            # Sorted, so that the order of lines is the same on every run.
            for name in sorted(order.get_ready()):
                target = by_name[name]
                reason = (failed or {}).get(name)
                blocker = next((need for need in target.package.requires if _is_bad(outcomes.get(need))), None)
                if blocker is not None:
                    finish(Outcome(name, target.database, "not run", error=f"{blocker} failed", status=1))
                elif reason is not None:
                    finish(Outcome(name, target.database, "failed", error=str(reason), status=reason.status))
                else:
                    worker = _start(target, task, list(workers))
                    workers[worker.pipe] = worker
            for worker in _step(workers, report):
                finish(_outcome(worker))
    except KeyboardInterrupt:
        with _ignored_signals():
            for worker in _end(workers, report):
                outcomes[worker.target.package.name] = _outcome(worker)
    interrupted = "the run was interrupted before it began"
    return [
        outcomes.get(name) or Outcome(name, target.database, "interrupted", error=interrupted, status=1)
        for name, target in by_name.items()
    ]


def _is_bad(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.state != "done"


def _start(target: Target, task: Task, others: list[Connection]) -> _Worker:
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    # A forked child has the parent's ends of all pipes as well. It closes them: with one of them open somewhere, a
    # worker whose parent is gone would never learn it.
    inherited = [ours, *others] if _FORKS else []
    process = _PROCESSES.Process(
        target=_work, args=(target, task, theirs, inherited), name=f"atriz {target.package.name}"
    )
    # A signal between the fork and the worker's own handlers would end it in the parent's.
    _mask_signals(block=True)
    try:
        process.start()
    finally:
        _mask_signals(block=False)
    theirs.close()
    return _Worker(target, process, ours, time.perf_counter())


def _step(workers: dict[Connection, _Worker], report: Report) -> Iterator[_Worker]:
    """Wait until some worker says something; yield those that are done, taken out of `workers`."""
    for pipe in multiprocessing.connection.wait(list(workers)) if workers else ():
        assert isinstance(pipe, Connection)
        worker = workers[pipe]
        try:
            said = pipe.recv()
        except EOFError:
            said = None
        if isinstance(said, Act):
            if said.kind in ("act", "warning"):
                worker.acts.append(said)
            report(said)
            continue
        worker.outcome = said
        report(Act(worker.target.package.name, worker.target.database, "", kind="progress"))
        worker.process.join()
        del workers[pipe]
        yield worker


def _end(workers: dict[Connection, _Worker], report: Report) -> Iterator[_Worker]:
    """Ask every worker to stop, hear what it says meanwhile, and end the deaf."""
    for worker in workers.values():
        worker.process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    while workers:
        if not multiprocessing.connection.wait(list(workers), timeout=max(deadline - time.monotonic(), 0)):
            for worker in workers.values():
                worker.process.kill()
            deadline = time.monotonic() + _GRACE_SECONDS
        yield from _step(workers, report)


def _outcome(worker: _Worker) -> Outcome:
    target, seconds = worker.target, time.perf_counter() - worker.started
    said = worker.outcome
    if said is None:
        code = worker.process.exitcode or 0
        error = (
            f"its process was ended by {signal.Signals(-code).name if code < 0 else f'exit status {code}'}. What was "
            "not committed is rolled back, and the lock is gone with the process; run the same command again."
        )
        said = Outcome(target.package.name, target.database, "failed", error=error, status=1)
    return Outcome(said.package, said.database, said.state, tuple(worker.acts), said.error, seconds, said.status)


def _work(target: Target, task: Task, pipe: Connection, inherited: Sequence[Connection]) -> None:
    """Run the task in this process, new and its own, and send what it does and how it ends."""
    name, database = target.package.name, target.database
    for each in inherited:
        each.close()
    try:
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        _mask_signals(block=False)
        task(target, pipe.send)
        outcome = Outcome(name, database, "done")
    except KeyboardInterrupt:
        outcome = Outcome(name, database, "interrupted", error="interrupted; what was under way is undone", status=1)
    except AtrizError as error:
        outcome = Outcome(name, database, "failed", error=str(error), status=error.status)
    except (BrokenPipeError, ConnectionResetError):
        # The parent is gone, and with it whoever wanted this.
        os._exit(1)
    except psycopg.Error as error:
        text = " / ".join(line.strip() for line in str(error).splitlines() if line.strip())
        state = f" ({error.sqlstate})" if error.sqlstate else ""
        text = f"the server of {database} said: {text}{state}. What was not committed is rolled back."
        outcome = Outcome(name, database, "failed", error=text, status=1)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno}). This is a defect of atriz."
        outcome = Outcome(name, database, "failed", error=text, status=1)
    with _ignored_signals(), suppress(BrokenPipeError):
        pipe.send(outcome)


def _mask_signals(*, block: bool) -> None:
    if hasattr(signal, "pthread_sigmask"):  # Windows has none, and no fork either.
        signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, _SIGNALS)


def _interrupt(number: int, frame: object) -> None:
    # One is enough: Ctrl-C reaches every process of the terminal, and the parent sends SIGTERM besides.
    for each in _SIGNALS:
        signal.signal(each, _no_more)
    raise KeyboardInterrupt


def _no_more(number: int, frame: object) -> None:
    """Ignore a further signal. SIG_IGN would make Python complain of one that has come and not been handled yet."""


@contextmanager
def _ignored_signals() -> Iterator[None]:
    before = [signal.signal(number, _no_more) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
