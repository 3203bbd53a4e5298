"""Byte code of files that are edited and run at once: revisions and seeds.

Python takes byte code for a file's own where both agree on the file's size and on the second of its last change
(``importlib``'s ``_validate_timestamp_pyc``). Whoever changes ``1`` to ``2`` in the second in which the file was run
would have it run as it was before.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path


class Loader(SourceFileLoader):
    """Python's loader of source files, which takes no byte code that is not younger than its source.

    >>> Loader("0001_users", "migrations/versions/0001_users.py")  # doctest: +ELLIPSIS
    <atriz_database.bytecode.Loader object at ...>
    """

    def get_data(self, path: str) -> bytes:
        """Return what a file holds.

        Raise `OSError` if it cannot be read, or is byte code that may be of an earlier text; it is made anew then.
        """
        if path != self.path and _may_be_old(path, self.path):
            raise FileNotFoundError(f"{path} is not younger than its source")
        return super().get_data(path)


def forget(folder: Path) -> None:
    """Remove such byte code of a folder's files, where somebody else is about to load them in Python's way.

    What cannot be removed stays.
    """
    for path in folder.glob("*.py"):
        cached = cache_from_source(str(path))
        with suppress(OSError):
            if _may_be_old(cached, str(path)):
                Path(cached).unlink()


def _may_be_old(cached: str, source: str) -> bool:
    return os.stat(cached).st_mtime_ns <= os.stat(source).st_mtime_ns  # noqa: PTH116 -- quicker
