"""What was read of revision files before, so that a folder of hundreds is not parsed again where nothing changed.

As git's index does for a work tree: an entry holds while the file's size, times and inode are what they were. The time
of its last change (ctime) is the file system's own and nobody's to set, so that a copy with old times is seen.

On a network file system the times are another machine's clock. One that is ahead only has files kept later, or not; one
that is behind by more than two seconds takes the margin away, and there two changes of equal size within one tick of
that clock, with a run between them, are the only case that goes unseen. Two clones have each their own folder, and so
share nothing; an index that is copied along with the files knows none of them, whose inodes and ctimes are new.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

# Another one whenever something else is read of a file, so that no one takes it for what they would have read.
_FORMAT = 1
# A file that changed just now may change again within the same tick of the file system's clock (two seconds is the
# coarsest there is) and keep its size: what is that young is not kept.
_SETTLED_NS = 2_000_000_000

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of modification and of change in nanoseconds, inode."""
Header = tuple[str, tuple[str, ...]]
"""A revision's id, and the ids that it stands on."""


def stamp(status: os.stat_result) -> Stamp:
    """Return what tells a file from what it was before."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def load(folder: Path) -> dict[str, tuple[Stamp, Header]]:
    """Return what is known of the files in `folder`, by name; nothing where nothing can be read."""
    # What is no index, or a damaged one, counts for nothing, and is written anew.
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        data = json.loads(_file(folder).read_bytes())
        if data["format"] == _FORMAT:
            return {
                name: ((size, modified, changed, inode), (id_, tuple(down)))
                for name, (size, modified, changed, inode, id_, down) in data["files"].items()
            }
    return {}


def save(folder: Path, known: Mapping[str, tuple[Stamp, Header]], read_at_ns: int) -> None:
    """Keep what was read, for the next run; where it cannot be written, that run reads the files again.

    :param read_at_ns: a time before the files were looked at, in nanoseconds since 1970.
    """
    files = {
        name: [*stamp, id_, down]
        for name, (stamp, (id_, down)) in known.items()
        if max(stamp[1], stamp[2]) < read_at_ns - _SETTLED_NS
    }
    path = _file(folder)
    written = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(exist_ok=True)
        written.write_text(json.dumps({"format": _FORMAT, "files": files}, separators=(",", ":")))
        written.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)


def _file(folder: Path) -> Path:
    # Beside Python's own compiled files: not in git, and gone with them.
    return folder / "__pycache__" / "atriz-revisions.json"
