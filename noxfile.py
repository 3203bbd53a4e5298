"""The tasks of this repository. Each verb is one call of `atriz`; order and parallelism live in the library.

Sessions are made from the members' manifests: a new package is a new folder, and nothing here changes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tomllib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import filelock
import nox

ROOT = Path(__file__).parent
VENV = ROOT / ".venv"
PROGRAMS = VENV / ("Scripts" if sys.platform == "win32" else "bin")
LOCK = ROOT / "requirements.txt"
AUDIT = "pip-audit==2.10.1"
QUICK = "not soak and not gate"
"""The marks of the tests that run where none are asked for."""
# Tests wait as well as work: with a worker for each core a third of the machine would be idle.
WORKERS = (os.cpu_count() or 1) * 3 // 2 + 1
MEMORY = Path("/dev/shm")  # noqa: S108 -- whose folder there it is is looked at
MEMORY_BYTES = 2 << 30
"""What must be free there; the test server takes a tenth of it."""

# A sentence for the session of all packages, and one for that of a package.
VERBS = {
    "setup": (
        "Create, migrate and seed: from nothing to working databases.",
        "Create, migrate and seed {}, and what it depends on.",
    ),
    "create": ("Make the databases that are not there yet.", "Make the database of {} if it is not there yet."),
    "migrate": (
        "Bring every database to head, core first, the apps side by side.",
        "Bring {} to head, and before it what it depends on.",
    ),
    "rollback": ("Needs a package: nox -s rollback:PACKAGE.", "Undo the newest revision of {}; -- --count N for more."),
    "status": ("Show where every database stands against the code.", "Show where the database of {} stands."),
    "plan": ("Show what migrate would do, revision by revision.", "Show what migrate would do to {}."),
    "verify": (
        "Take each revision up, down and up again in scratch databases.",
        "Take each revision of {}, and of what it depends on, up, down and up again.",
    ),
    "new": ("Needs a package: nox -s new:PACKAGE.", 'Write a revision of {}: -- "what it does".'),
    "seed": ("Run all seed files; skipped in production.", "Run the seed files of {}; skipped in production."),
    "clean": ("Empty every table; structure and history stay.", "Empty every table of {}; structure and history stay."),
    "reset": (
        "Drop, create, migrate and seed everything; asks first.",
        "Drop, create, migrate and seed {}; asks first.",
    ),
    "grant": (
        "Give each database an owner, and each app a role that may do what it needs.",
        "Give the database of {} its roles, and before it those of what it depends on.",
    ),
    "env": ("Show every setting and where it comes from.", "Show the settings of {} and where they come from."),
}
WHOLE_VERBS = {
    "server": "Show, start or stop the embedded PostgreSQL: nox -s server -- start, or -- stop.",
    "graph": "Show the packages and what each depends on.",
}

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"
# On SIGTERM nox would die at once and leave its child behind; so it does what it does on Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def _manifests() -> list[Path]:
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    return [path for pattern in workspace["members"] for path in sorted(ROOT.glob(f"{pattern}/pyproject.toml"))]


MEMBERS = {path.parent.name: path for path in _manifests()}
PACKAGES = [name for name, path in MEMBERS.items() if "[tool.atriz.database]" in path.read_text()]


def _environment(session: nox.Session) -> None:
    """Make `.venv` with every member editable, if the manifests or the lock have changed since it was made."""
    # An environment belongs to its place and its Python: for another of either it is made anew.
    base = f"{sys.version}\n{VENV}\n"
    digest = hashlib.sha256(base.encode())
    for path in (ROOT / "pyproject.toml", LOCK, *MEMBERS.values()):
        digest.update(str(path).encode() + path.read_bytes())
    made_by, made_from = VENV / "made-by", VENV / "made-from"
    with filelock.FileLock(ROOT / ".venv.lock"):
        whole = (PROGRAMS / "python").exists() and made_by.is_file() and made_by.read_text() == base
        if whole and made_from.is_file() and made_from.read_text() == digest.hexdigest():
            return
        session.log("making .venv")
        if not whole:
            _uv(session, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV))
            made_by.write_text(base)
        members = VENV / "members.txt"
        members.write_text("".join(f"-e {path.parent.as_posix()}\n" for path in MEMBERS.values()))
        _uv(session, "pip", "sync", "--quiet", "--compile-bytecode", str(LOCK), str(members))
        # uv compiles what it installs, and the members stay where they are.
        sources = [str(path.parent / "src") for path in MEMBERS.values()]
        session.run(str(PROGRAMS / "python"), "-m", "compileall", "-q", *sources, external=True, silent=True)
        made_from.write_text(digest.hexdigest())


def _uv(session: nox.Session, *arguments: str, success_codes: Iterable[int] = (0,)) -> None:
    try:
        # The one that nox[uv] brought, which pipx keeps off the PATH.
        uv = import_module("uv").find_uv_bin()
    except (ImportError, FileNotFoundError):
        uv = shutil.which("uv") or session.error('uv is missing. Get it with: python -m pip install "nox[uv]"')
    environ = {"VIRTUAL_ENV": str(VENV)}
    session.run(uv, *arguments, env=environ, external=True, silent=True, success_codes=success_codes)


def _run(session: nox.Session, program: str, *arguments: str) -> None:
    # Time to cancel a statement and roll back, where nox would kill within half a second.
    _environment(session)
    path = str(PROGRAMS / program)
    session.run(path, *arguments, external=True, interrupt_timeout=1.0, terminate_timeout=45.0)


def _verb_session(name: str, summary: str, *arguments: str) -> None:
    def run(session: nox.Session) -> None:
        _run(session, "atriz", *arguments, *session.posargs)

    run.__doc__ = summary
    nox.session(name=name)(run)


for _verb, (_summary, _of_one) in VERBS.items():
    _verb_session(_verb, _summary, _verb)
    for _package in PACKAGES:
        _verb_session(f"{_verb}:{_package}", _of_one.format(_package), _verb, _package)
for _verb, _summary in WHOLE_VERBS.items():
    _verb_session(_verb, _summary, _verb)


@nox.session
def dev(session: nox.Session) -> None:
    """Make the environment for editors and for plain `atriz` and `alembic`, and say how to activate it."""
    _environment(session)
    session.log(f"ready; activate it with: source {os.path.relpath(PROGRAMS, Path.cwd())}/activate")


def _server_in_memory() -> dict[str, str]:
    """Return the setting that puts the data of the test server into memory, empty where there is little.

    It is thrown away at the next boot wherever it is, and on a disk databases take three times as long to make.
    """
    if "ATRIZ_SERVER_HOME" in os.environ or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_BYTES:
        return {}
    home = MEMORY / f"atriz-{os.geteuid()}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o755)
    # Anybody may make folders there, and so have made this one before us.
    return {"ATRIZ_SERVER_HOME": str(home / "server")} if home.lstat().st_uid == os.geteuid() else {}


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on servers of their own; -- -m gate runs the longer ones, on fresh clones and the like."""
    chosen = ("-n", str(WORKERS), "--dist", "worksteal", "-m", QUICK)
    session.env.update(_server_in_memory())
    _run(session, "python", "-m", "pytest", *chosen, *session.posargs)


def _tests_session(name: str, folder: Path) -> None:
    def run(session: nox.Session) -> None:
        session.install(
            *("--quiet", "--compile-bytecode", "--constraint", str(LOCK)),
            *("-e", str(folder), "--group", f"{folder / 'pyproject.toml'}:test"),
        )
        session.env.update(_server_in_memory())
        session.run("python", "-m", "pytest", str(folder / "tests"), "-m", QUICK, *session.posargs)

    run.__doc__ = f"Run the tests of {name} in an environment of its own, with what it declares and no more."
    nox.session(name=f"tests:{name}", venv_backend="uv")(run)


for _name, _manifest in MEMBERS.items():
    _tests_session(_name, _manifest.parent)


def _serve_session(name: str, folder: Path) -> None:
    module = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["uv"]["build-backend"]["module-name"]

    def run(session: nox.Session) -> None:
        _refuse_taken_port(session)
        _run(session, "uvicorn", "--factory", f"{module}.web:create_app", "--host", "127.0.0.1", *session.posargs)

    run.__doc__ = f"Serve {name} on this machine; -- --port N, 0 for a free one, and whatever uvicorn takes."
    nox.session(name=f"serve:{name}")(run)


def _refuse_taken_port(session: nox.Session) -> None:
    """End the session if something listens where uvicorn would: it names the error, and not the next step."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given, _ = parser.parse_known_args(session.posargs)
    with socket.socket() as taken:
        # Nobody answers at port 0, nor where uvicorn will say that there is no such address.
        if given.port and taken.connect_ex((given.host, given.port)) == 0:
            session.error(f"port {given.port} is taken. A free one: nox -s {session.name} -- --port 0")


for _name, _manifest in MEMBERS.items():
    if any("def create_app(" in path.read_text() for path in _manifest.parent.glob("src/*/web.py")):
        _serve_session(_name, _manifest.parent)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    _run(session, "python", "-m", "pytest", "-n", "auto", "-m", "soak", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed beside floors and peers: -- migrate, --quick, --rounds N, --no-peers, --only CASE, --json."""
    _run(session, "python", "-m", "benchmarks", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, what ruff knows of security (S), import contracts, the workflow files, and known vulnerabilities."""
    _run(session, "ruff", "check", str(ROOT))
    _run(session, "ruff", "format", "--check", str(ROOT))
    _run(session, "lint-imports")
    _run(session, "actionlint")
    _audit(session)


def _audit(session: nox.Session) -> None:
    """Fail if a locked version has a known vulnerability; where nobody can be asked, say so and go on."""
    report = Path(session.create_tmp()).absolute() / "audit.json"
    report.unlink(missing_ok=True)
    _uv(
        session,
        *("tool", "run", AUDIT, "--requirement", str(LOCK), "--disable-pip", "--require-hashes", "--timeout", "5"),
        *("--progress-spinner", "off", "--format", "json", "--output", str(report)),
        success_codes=range(256),
    )
    found = json.loads(report.read_text())["dependencies"] if report.exists() else []
    # What it did not find where it asked it skips, and is content.
    asked = [each for each in found if "vulns" in each]
    if not asked:
        session.warn("audit skipped: the service with known vulnerabilities was not reached")
        return
    bad = [
        f"{each['name']} {each['version']}: {', '.join(v['id'] for v in each['vulns'])}"
        for each in asked
        if each["vulns"]
    ]
    if bad:
        session.error(f"known vulnerabilities; take newer versions with nox -s lock -- --upgrade. {'; '.join(bad)}")
    session.log(f"{len(asked)} of {len(found)} dependencies audited, nothing known of them")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, strictly."""
    for path in MEMBERS.values():
        _run(session, "mypy", str(path.parent / "src"))
    _run(session, "mypy", str(ROOT / "noxfile.py"))
    _run(session, "mypy", "-p", "benchmarks")


@nox.session
def lock(session: nox.Session) -> None:
    """Write requirements.txt anew: the newest versions that the manifests allow (-- --upgrade)."""
    members = [f"--no-emit-package={tomllib.loads(path.read_text())['project']['name']}" for path in MEMBERS.values()]
    _uv(
        session,
        *("pip", "compile", "--quiet", "--universal", "--all-extras", "--no-emit-index-url", "--generate-hashes"),
        *("--python-version", "3.11", "--custom-compile-command", "nox -s lock", "--output-file", LOCK.name),
        *("--group", "dev", *members, *session.posargs),
        *(str(path.relative_to(ROOT)) for path in MEMBERS.values()),
    )
