"""Programs of Debian's packages, unpacked into a folder: nothing is installed, no service started, no root needed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

# With the loader and the C library of the machine itself goes what was made for them; nobody needs compiled queries.
_NOT_FETCHED = re.compile("libc6|libc-bin|libcrypt1|libllvm.*")
_AS_CALLER = ("-o", "APT::Sandbox::User=")


@dataclass(frozen=True)
class Program:
    """A program, and the folders of the libraries that came with it."""

    path: Path
    libraries: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """What its process is started with besides the caller's environment."""
        return {"LD_LIBRARY_PATH": self.libraries} if self.libraries else {}

    def works(self) -> bool:
        """Whether it starts: its libraries are there."""
        done = subprocess.run([self.path, "--version"], env={**os.environ, **self.environ}, capture_output=True)
        return done.returncode == 0


def program(package: str, path: str, *, installed: Path | None = None) -> Program:
    """Return a package's program: the machine's own, or Debian's, which CI fetches. Skip the test where there is none.

    In CI (the variable CI is set) a missing one fails the test.

    :param package: the package's name, or the beginning of the name of one that `package` itself depends on.
    :param path: where the program lies in the package, a pattern.
    :param installed: where the machine has it, if it has.
    """
    if installed is not None:
        return Program(installed)
    cache = Path(tempfile.gettempdir()) / f"atriz-{package}-{os.geteuid()}"
    in_ci = bool(os.environ.get("CI"))
    if in_ci and not cache.exists():
        _fetch(package, path, cache)
    fetched = _in(cache, path)
    if fetched is not None and fetched.works():
        return fetched
    text = f"needs Debian's {package}: install it, or set CI=true where there is apt-get, which then fetches it"
    if in_ci:
        pytest.fail(f"{text}. This is CI, and it could not be had; {cache} holds what could.")
    pytest.skip(text)


def _in(folder: Path, path: str) -> Program | None:
    found = next(folder.glob(path), None)
    if found is None:
        return None
    # Never those that belong to a program, as plug-ins do: the loader looks in these folders for every library.
    libraries = (*folder.glob("usr/lib/*-linux-gnu*"), *folder.glob("lib/*-linux-gnu*"))
    return Program(found, os.pathsep.join(str(each) for each in libraries))


def _fetch(package: str, path: str, cache: Path) -> None:
    """Unpack a package into a folder, and the libraries that it needs where the machine lacks one of them."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return
    unfinished = Path(tempfile.mkdtemp(prefix=f"atriz-{package}-"))
    unfinished.chmod(0o755)
    try:
        options: tuple[str, ...] = ()
        if not _unpack([_named(package)], unfinished):
            # Lists of its own: those of the machine may be missing or old, and only root may renew them.
            (unfinished / "lists" / "partial").mkdir(parents=True)
            options = ("-o", f"Dir::State::Lists={unfinished / 'lists'}")
            subprocess.run(["apt-get", *options, *_AS_CALLER, "-qq", "update"], capture_output=True)
            _unpack([_named(package, *options)], unfinished, *options)
        found = _in(unfinished, path)
        if found is not None and not found.works():
            _unpack(_libraries(_named(package, *options), *options), unfinished, *options)
        with contextlib.suppress(OSError):  # Another process was as quick.
            unfinished.rename(cache)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unpack(packages: list[str], folder: Path, *options: str) -> bool:
    """Fetch packages and unpack them; return whether that went well."""
    with tempfile.TemporaryDirectory() as downloads:
        command = ["apt-get", *options, *_AS_CALLER, "-qq", "download", *packages]
        if subprocess.run(command, cwd=downloads, capture_output=True).returncode != 0:
            return False
        for archive in Path(downloads).glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, folder], check=True, capture_output=True)
    return True


def _named(package: str, *options: str) -> str:
    """Return the package itself, or the one with a version in its name that it stands for, as postgresql-15."""
    versions = [name for name in _needs([package], *options) if re.fullmatch(re.escape(package) + "-[0-9]+", name)]
    return versions[0] if versions else package


def _libraries(package: str, *options: str) -> list[str]:
    """Return the library packages that a package needs, and those that they need."""
    found: set[str] = set()
    ahead = [package]
    while ahead:
        needed = {name for name in _needs(ahead, *options) if name.startswith(("lib", "zlib"))}
        ahead = sorted(name for name in needed - found if not _NOT_FETCHED.fullmatch(name))
        found.update(ahead)
    return sorted(found)


def _needs(packages: list[str], *options: str) -> list[str]:
    listed = subprocess.run(["apt-cache", *options, "depends", *packages], capture_output=True, text=True)
    return re.findall(r"Depends: ([a-z0-9][^\s:]*)", listed.stdout)
