"""SIGINT and SIGTERM kept waiting: so that what was done is also told, and nobody dies between the two."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOMENT = 0.01
# Windows has no signal masks; there a moment remains in which a signal comes between the two.
_HAS_MASKS = hasattr(signal, "pthread_sigmask")


@contextmanager
def blocked() -> Iterator[None]:
    """Keep the signals waiting until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _HAS_MASKS else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def unblocked() -> Iterator[None]:
    """Let the signals in again while the block runs: those that waited come at once."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) if _HAS_MASKS else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_deaf(thread: Thread) -> None:
    """Start a thread that gets no signals.

    One that it got Python would handle in the main thread, in the middle of a block that keeps them waiting.
    """
    with blocked():
        thread.start()


def stop_orphan() -> None:
    """Raise `KeyboardInterrupt` in a process whose parent is gone, and with it whoever wanted what comes next."""
    processes = sys.modules.get("multiprocessing")
    parent = processes.parent_process() if processes is not None else None
    if parent is not None and parent.pid != os.getppid():
        raise KeyboardInterrupt


def discard() -> None:
    """Throw away the signals that wait: who has been interrupted once need not be again."""
    while _HAS_MASKS and (waiting := signal.sigpending() & set(SIGNALS)):
        signal.sigwait(waiting)


def ignore(number: int, frame: object) -> None:
    """Handle a signal by doing nothing. SIG_IGN would make Python complain of one that came just before."""


def catch() -> None:
    """From now on raise `KeyboardInterrupt` for the first signal and for no other.

    Ctrl-C reaches every process of a terminal, and some twice. Once is enough: a second one would only take away what
    is still to be said.
    """
    for each in SIGNALS:
        signal.signal(each, _once)
    sys.unraisablehook = _not_raised


def _once(number: int, frame: object) -> None:
    for each in SIGNALS:
        signal.signal(each, ignore)
    raise KeyboardInterrupt


def _not_raised(dropped: sys.UnraisableHookArgs) -> None:
    """Raise again what came while Python ran a finalizer, and was dropped there: a moment later, in earnest."""
    if issubclass(dropped.exc_type, KeyboardInterrupt) and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _once)
        signal.setitimer(signal.ITIMER_REAL, _MOMENT)
    else:
        sys.__unraisablehook__(dropped)
