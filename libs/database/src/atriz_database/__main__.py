"""Where the ``atriz`` command begins; ``python -m atriz_database`` is the same."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from atriz_database import interrupt


def main() -> NoReturn:
    """Run the command and exit with its status."""
    # Before anything is imported, which takes longer than many a run: an impatient Ctrl-C gets a line, not a traceback.
    # SIGTERM means the same as Ctrl-C: cancel the statement, roll back, say what was done.
    interrupt.catch()
    # What is imported stays: to look through it for garbage takes a tenth of a short run. Workers collect theirs.
    gc.disable()
    # Mako, which Alembic writes files with, would load Pygments to colour web pages.
    sys.modules.setdefault("mako.ext.pygmentplugin", None)  # type: ignore[arg-type]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 -- for as long as the process lives
        # A name that the terminal's encoding lacks is shown escaped; it must not end a run.
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        from atriz_database.cli.main import main

        status = main(sys.argv[1:])
        # All is said: a signal that comes now would only spoil the status.
        for number in interrupt.SIGNALS:
            signal.signal(number, interrupt.ignore)
    except KeyboardInterrupt:
        print("atriz: interrupted", file=sys.stderr)  # noqa: T201 -- the command's own last word
        status = 1
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End the process at once. To take down what was imported, module by module, takes a fifth of a short run."""
    for stream in (sys.stdout, sys.stderr):
        # What could not be written was told of when it was tried.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
