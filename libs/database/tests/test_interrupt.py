"""Signals: none is lost, and one is enough."""

from __future__ import annotations

import subprocess
import sys

_FINALIZER = """
import os, signal, time
from atriz_database import interrupt

interrupt.catch()

class Closing:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)

try:
    Closing()
    time.sleep(10)
except KeyboardInterrupt:
    signal.raise_signal(signal.SIGINT)
    print("interrupted once")
"""


def test_a_signal_that_comes_in_a_finalizer_is_not_lost() -> None:
    """Python drops what is raised in __del__, with a traceback on stderr; here it comes again, and quietly."""
    done = subprocess.run([sys.executable, "-c", _FINALIZER], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted once\n", "", 0)
