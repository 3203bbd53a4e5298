"""Where the ``atriz`` command begins; ``python -m atriz_database`` is the same."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command and exit with its status."""
    # Before anything is imported, which takes longer than many a run: an impatient Ctrl-C gets a line, not a traceback.
    # SIGTERM means the same as Ctrl-C: cancel the statement, roll back, say what was done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        from atriz_database.cli.main import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("atriz: interrupted", file=sys.stderr)  # noqa: T201 -- the command's own last word
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
