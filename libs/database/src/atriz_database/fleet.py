"""A run over several packages: in the order of the graph, side by side where it allows, a process for each.

Processes, because Alembic's contexts belong to a process; and each holds the lock of the database it changes on a
connection of its own, so that whatever ends the process also lets go of the database.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import psycopg

from atriz_database import databases, interrupt
from atriz_database.errors import AtrizError
from atriz_database.settings import Target

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

# After fork, what the parent has imported is there at once. macOS's own libraries do not survive a fork.
_FORKS = sys.platform == "linux"
# What a worker gets to cancel its statement and roll back, before it is killed.
_GRACE_SECONDS = 30.0
# Lines of hundreds of revisions are written some at a time: to wake for each costs as much as its server's work.
_TOGETHER_SECONDS = 0.01
# When a worker looks for garbage. Python's own 700 is every tenth revision, and takes 3 % of a worker's time.
_NEW_OBJECTS = 50_000
_LENGTH = struct.Struct("!I")
_AT_ONCE = 1 << 16


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
    progress: str = ""
    """How far the package is with this, for a terminal: ``3 of 50 revisions``."""

    def __reduce__(self) -> tuple[type[Act], tuple[object, ...]]:
        # Thousands pass from worker to parent; a dataclass's own way takes four times as long.
        return Act, tuple(getattr(self, name) for name in self.__slots__)


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
    applied: tuple[str, ...] = ()
    """Ids of the revisions that the run applied, oldest first."""
    undone: tuple[str, ...] = ()
    """Ids of the revisions that the run undid, newest first."""
    failed: str = ""
    """Id of the revision that failed, and was rolled back."""
    pending: tuple[str, ...] = ()
    """Ids of the revisions that the database still lacks, oldest first, the failed one among them."""
    at: tuple[str, ...] | None = None
    """Where the database is now; `None` where that is not known, or not what the verb is about."""
    back: str = ""
    """The command that takes the database back to where it was before the run, where it moved and there is one."""


Report = Callable[[Act], None]
"""Gets each act as it happens."""
Task = Callable[[Target, Report], None]
"""What is done to one database, in a process of its own. It raises an `AtrizError` if it fails."""
Turn = Callable[[], None]
"""Returns when it is the package's turn."""
Early = Callable[[Target, Report, Turn], None]
"""A task that begins before the package's turn: until it has called the last of its arguments it changes nothing."""


@dataclass(slots=True)
class _Worker:
    target: Target
    process: BaseProcess
    pipe: socket.socket
    started: float
    received: bytearray = field(default_factory=bytearray)
    """What has come through the pipe and is not a whole message yet."""
    has_begun: bool = False
    acts: list[Act] = field(default_factory=list)
    outcome: Outcome | None = None


def whole(task: Task) -> Early:
    """Return a task as one that does nothing before its turn."""
    return partial(_whole, task)


def _whole(task: Task, target: Target, report: Report, turn: Turn) -> None:
    turn()
    task(target, report)


def run(
    targets: Sequence[Target],
    task: Early,
    report: Report,
    *,
    failed: Mapping[str, AtrizError] | None = None,
    reverse: bool = False,
    ordered: bool = True,
    early: bool = False,
) -> list[Outcome]:
    """Do a task for each target, core first, independent ones side by side; return an outcome for each, in order.

    Ctrl-C and SIGTERM end the workers, each of which cancels its statement and rolls back; what they had done is in
    the outcomes, whose state is ``interrupted``.

    :param failed: packages that are known to fail, with the reason; they count as failed without being tried.
    :param reverse: whether a package comes after all that depend on it, as destructive verbs want it.
    :param ordered: whether a package waits for those it depends on; if not, all go side by side.
    :param task: called in each package's own process; :func:`whole` makes one of a task that is not in two parts.
    :param early: whether each package's process is started while those it depends on are still at work.
    """
    names = {target.package.name for target in targets}
    by_name = {target.package.name: target for target in targets}
    needs = {name: names.intersection(target.package.requires if ordered else ()) for name, target in by_name.items()}
    if reverse:
        needs = {name: {other for other in names if name in needs[other]} for name in names}
    order = TopologicalSorter(needs)
    order.prepare()
    outcomes: dict[str, Outcome] = {}
    workers = _Workers()

    def finish(outcome: Outcome) -> None:
        outcomes[outcome.package] = outcome
        order.done(outcome.package)

    # Signals come in only while this process waits, so that nothing it hears gets lost on the way to the outcomes.
    with interrupt.blocked(), workers:
        try:
            if early:
                # What they share is not copied, and not looked through again, in each of them.
                gc.freeze()
            waiting = [target for target in targets if early and target.package.name not in (failed or ())]
            while order.is_active():
                # Sorted, so that the order of lines is the same on every run.
                for name in sorted(order.get_ready()):
                    target = by_name[name]
                    reason = (failed or {}).get(name)
                    blocker = next((need for need in sorted(needs[name]) if _is_bad(outcomes.get(need))), None)
                    if blocker is not None:
                        workers.dismiss(name)
                        finish(Outcome(name, target.database, "not run", error=f"{blocker} failed", status=1))
                    elif reason is not None:
                        finish(Outcome(name, target.database, "failed", error=str(reason), status=reason.status))
                    else:
                        workers.begin(target, task)
                for worker in workers.heard(report):
                    finish(_outcome(worker))
                # The others once the first have said something: until then those need the processor for themselves.
                for target in waiting:
                    if target.package.name not in outcomes:
                        workers.start(target, task)
                waiting = []
        except KeyboardInterrupt:
            for worker in workers.end(report):
                if worker.has_begun:
                    outcomes[worker.target.package.name] = _outcome(worker)
            interrupt.discard()
        except BaseException:
            # The caller's `report` failed: whatever it is, no worker outlives it.
            for _ in workers.end(lambda act: None):
                pass
            raise
    interrupted = "the run was interrupted before it began"
    return [
        outcomes.get(name) or Outcome(name, target.database, "interrupted", error=interrupted, status=1)
        for name, target in by_name.items()
    ]


def _is_bad(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.state != "done"


class _Workers:
    """The processes of a run, and the pipes to them: each is started, told to begin, heard, and gone."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Worker] = {}
        self._ended: list[BaseProcess] = []
        self._selector = selectors.DefaultSelector()
        self._is_talking = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for process in self._ended:
            process.join()

    def start(self, target: Target, task: Early) -> None:
        """Start a worker, if it isn't there, which waits for its turn. Signals are blocked until it has handlers."""
        if target.package.name in self._by_name:
            return
        # Imported for a run that has something to do; most have not.
        import multiprocessing

        processes = multiprocessing.get_context("fork") if _FORKS else multiprocessing.get_context("spawn")
        ours, theirs = socket.socketpair()
        # A forked child has the parent's ends of all pipes as well. It closes them: with one of them open somewhere, a
        # worker whose parent is gone would never learn it.
        inherited = [ours, *(worker.pipe for worker in self._by_name.values())] if _FORKS else []
        name = target.package.name
        process = processes.Process(target=_work, args=(target, task, theirs, inherited), name=f"atriz {name}")
        process.start()
        theirs.close()
        self._by_name[name] = _Worker(target, process, ours, time.perf_counter())
        self._selector.register(ours, selectors.EVENT_READ, name)

    def begin(self, target: Target, task: Early) -> None:
        """Have a package's worker do its task, started now if it wasn't before."""
        self.start(target, task)
        worker = self._by_name[target.package.name]
        worker.has_begun, worker.started = True, time.perf_counter()
        # One that has died meanwhile is heard of as such.
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send(b"!")

    def dismiss(self, name: str) -> None:
        """Send a worker home that has not begun."""
        worker = self._by_name.pop(name, None)
        if worker is not None:
            self._close(worker)

    def heard(self, report: Report) -> Iterator[_Worker]:
        """Wait until some worker says something; yield those that are done."""
        if any(worker.has_begun for worker in self._by_name.values()):
            with interrupt.unblocked():
                if self._is_talking:
                    self._rest()
                ready = self._selector.select()
            yield from self._hear(ready, report)

    def _rest(self) -> None:
        """Let lines come together; but once a worker has closed its pipe others may wait for what it has done."""
        if not hasattr(select, "poll"):
            time.sleep(_TOGETHER_SECONDS)
            return
        closed = select.poll()
        for worker in self._by_name.values():
            closed.register(worker.pipe, 0)
        closed.poll(_TOGETHER_SECONDS * 1000)

    def end(self, report: Report) -> Iterator[_Worker]:
        """Ask every worker to stop, hear what it says meanwhile, and end the deaf."""
        for worker in self._by_name.values():
            worker.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._by_name:
            ready = self._selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                for worker in self._by_name.values():
                    worker.process.kill()
                deadline = time.monotonic() + _GRACE_SECONDS
            yield from self._hear(ready, report)

    def _hear(self, ready: Iterable[tuple[selectors.SelectorKey, int]], report: Report) -> Iterator[_Worker]:
        self._is_talking = True
        for key, _ in ready:
            worker = self._by_name[key.data]
            try:
                received = worker.pipe.recv(_AT_ONCE)
            except ConnectionResetError:
                received = b""
            worker.received += received
            for said in _messages(worker.received):
                if isinstance(said, Outcome):
                    worker.outcome = said
                    continue
                if said.kind in ("act", "warning"):
                    worker.acts.append(said)
                report(said)
            if received and worker.outcome is None:
                continue
            self._is_talking = False
            if worker.outcome is None:
                worker.process.join()  # It has died, and how it did is still to be known.
            report(Act(worker.target.package.name, worker.target.database, "", kind="progress"))
            del self._by_name[key.data]
            self._close(worker)
            if worker.has_begun:
                yield worker
            # Another takes the place of one that ended before its turn: nothing was done, so nothing is known of it.

    def _close(self, worker: _Worker) -> None:
        self._selector.unregister(worker.pipe)
        worker.pipe.close()
        # Nobody waits for the end of a process that has told all it had to.
        self._ended.append(worker.process)


def _messages(received: bytearray) -> Iterator[Act | Outcome]:
    """Take whole messages off what was received, and yield them."""
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        message = bytes(received[_LENGTH.size : end])
        del received[:end]
        yield pickle.loads(message)  # noqa: S301 -- of a process of our own


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
    return replace(said, acts=tuple(worker.acts), seconds=seconds)


def _work(target: Target, task: Early, pipe: socket.socket, inherited: Sequence[socket.socket]) -> None:
    """Run the task in this process, new and its own, and send what it does and how it ends."""
    name, database = target.package.name, target.database
    for each in inherited:
        each.close()
    has_turn = False

    def turn() -> None:
        nonlocal has_turn
        if not has_turn and not pipe.recv(1):
            os._exit(0)  # Sent home, or the parent is gone.
        has_turn = True

    gc.enable()
    gc.set_threshold(_NEW_OBJECTS)
    # What a seed or a revision prints is not the command's own output, which may be one JSON document.
    os.dup2(2, 1)
    try:
        interrupt.catch()
        with interrupt.unblocked():
            try:
                task(target, partial(_send, pipe), turn)
            except Exception:
                turn()  # What goes wrong before it is told then.
                raise
        outcome = Outcome(name, database, "done")
    except KeyboardInterrupt:
        outcome = Outcome(name, database, "interrupted", error="interrupted; what was under way is undone", status=1)
    except AtrizError as error:
        outcome = Outcome(name, database, "failed", error=str(error), status=error.status, failed=error.revision)
    except (BrokenPipeError, ConnectionResetError):
        # The parent is gone, and with it whoever wanted this.
        os._exit(1)
    except psycopg.Error as error:
        text = databases.said(error)
        state = f" ({error.sqlstate})" if error.sqlstate else ""
        text = f"the server of {database} said: {text}{state}. What was not committed is rolled back."
        outcome = Outcome(name, database, "failed", error=text, status=1)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno}). This is a defect of atriz."
        outcome = Outcome(name, database, "failed", error=text, status=1)
    # Blocked again since the task ended: nothing comes between the outcome and the parent.
    with suppress(BrokenPipeError, ConnectionResetError):
        _send(pipe, outcome)
    pipe.close()


def _send(pipe: socket.socket, message: Act | Outcome) -> None:
    """Send a message, as a whole or not at all."""
    pickled = pickle.dumps(message)
    with interrupt.blocked():
        pipe.sendall(_LENGTH.pack(len(pickled)) + pickled)
