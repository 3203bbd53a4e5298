"""The head file: which revision a package's history ends in, in a file that two branches cannot both change unseen.

Two branches that each add a revision merge without a conflict, and leave two heads. With the head in a file of its
own git sees the conflict. Alembic writes it, by a post-write hook that runs this module, so that ``alembic revision``,
``merge`` and ``splice`` do so too. `check` compares it with the files; nothing else trusts it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from atriz_database import revisions
from atriz_database.errors import RevisionError
from atriz_database.revisions import Revisions


def file_of(versions: Path) -> Path:
    """Return the head file of a folder of revisions: ``migrations/head``."""
    return versions.parent / "head"


def text(files: Revisions) -> str:
    """Return what the head file of a history should hold: the head's id and its file's name; several if they are."""
    return "".join(f"{head} {files.by_id[head].title}\n" for head in files.heads)


def main(arguments: list[str]) -> int:
    """Write the head file for the revision file that Alembic has just written."""
    try:
        versions = Path(arguments[0]).resolve().parent
        file_of(versions).write_text(text(revisions.read(versions)), encoding="utf-8")
    except (RevisionError, revisions.Undecided) as error:
        print(f"the head file was not written: {error}", file=sys.stderr)  # noqa: T201 -- Alembic shows it
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
