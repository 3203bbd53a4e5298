"""The settings page: every source of a URL and of APP_ENV, what wins, what is refused. For people: docs/settings.md."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from atriz_database import settings, workspace
from atriz_database.errors import SettingsError
from atriz_database.settings import Target, Value
from atriz_database.workspace import Workspace

PASSWORD = "hunter%2@/ 3"  # which no message and no repr may hold, nor any part of it
ENCODED = "hunter%252%40%2F%203"
HERE = f"postgresql://ann:{ENCODED}@here/mine_db"
THERE = f"postgresql://ann:{ENCODED}@there/other_db"
SHARED = f"postgresql://ann:{ENCODED}@here/atriz_shared"

ROOT, CORE, ATRIZ, MEXTRACK, PSHOP = (
    ".env",
    "packages/core/.env",
    "apps/atriz/.env",
    "apps/mextrack/.env",
    "apps/pshop/.env",
)
DIRECTORY = object()
LOOP = object()
EMBEDDED = None


@dataclass(frozen=True)
class Case:
    """One row of the page."""

    id: str
    process: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, object] = field(default_factory=dict)
    """Text or bytes by path; DIRECTORY and LOOP stand for what cannot be read."""
    run: tuple[str, ...] = ("mextrack",)
    administrative: bool = True
    url: str | dict[str, str | None] | None = EMBEDDED
    """What the run's package leads to, or each of several."""
    origin: str = settings.EMBEDDED
    """Of the last package of the run; ``~`` is the workspace's folder."""
    environment: str = "development"
    environment_origin: str | None = None
    error: tuple[str, ...] = ()
    """Words that the error must hold."""


ALL = ("core", "atriz", "mextrack", "pshop")
APPS = ALL[1:]
IN_PROCESS = "in the process environment"


def on(host: str, *names: str) -> dict[str, str | None]:
    """Return the URL of each package on a server, with the database names of the manifests."""
    databases = {"core": "atriz_shared"} | {name: f"{name}_db" for name in APPS}
    return {name: f"postgresql://{host}/{databases[name]}" for name in names or ALL}


LEVEL_1 = [
    Case("process: V", {"DATABASE_URL": HERE}, url=HERE, origin=f"DATABASE_URL {IN_PROCESS}"),
    Case(
        "process: P_V before V",
        {"DATABASE_URL": THERE, "MEXTRACK_DATABASE_URL": HERE},
        url=HERE,
        origin=f"MEXTRACK_DATABASE_URL {IN_PROCESS}",
    ),
    Case("process: another package's P_V is not this one's", {"PSHOP_DATABASE_URL": THERE}),
    Case(
        "process: V before the package's .env",
        {"DATABASE_URL": HERE},
        {MEXTRACK: f"DATABASE_URL={THERE}"},
        url=HERE,
        origin=f"DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "process: V before PGHOST",
        {"DATABASE_URL": HERE, "PGHOST": "there"},
        url=HERE,
        origin=f"DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "process: core's V is core's alone",
        {"SHARED_DATABASE_URL": SHARED, "PGHOST": "there"},
        run=("core", "mextrack"),
        url={"core": SHARED, **on("there", "mextrack")},
        origin=f"PGHOST {IN_PROCESS}",
    ),
    Case(
        "process: V with one package of the run that uses it",
        {"DATABASE_URL": HERE, "SHARED_DATABASE_URL": SHARED},
        run=("core", "mextrack"),
        url={"core": SHARED, "mextrack": HERE},
        origin=f"DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "process: V with several packages is refused",
        {"DATABASE_URL": HERE},
        run=ALL,
        error=(
            "DATABASE_URL in the process",
            "ATRIZ_DATABASE_URL, MEXTRACK_DATABASE_URL and PSHOP_DATABASE_URL",
            "one package",
        ),
    ),
    Case(
        "process: V with several packages of which one has no P_V is refused",
        {"DATABASE_URL": HERE, "MEXTRACK_DATABASE_URL": THERE},
        run=("mextrack", "pshop"),
        error=("DATABASE_URL", "MEXTRACK_DATABASE_URL and PSHOP_DATABASE_URL"),
    ),
    Case(
        "process: V with several packages that all have P_V means none of them",
        {"DATABASE_URL": "postgresql://x/y", "MEXTRACK_DATABASE_URL": HERE, "PSHOP_DATABASE_URL": THERE},
        run=("mextrack", "pshop"),
        url={"mextrack": HERE, "pshop": THERE},
        origin=f"PSHOP_DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "process: DIRECT_V with several packages is refused",
        {"DIRECT_DATABASE_URL": HERE},
        run=("mextrack", "pshop"),
        error=("DIRECT_DATABASE_URL", "MEXTRACK_DATABASE_URL and PSHOP_DATABASE_URL"),
    ),
    Case(
        "process: DIRECT_V with several packages means nothing to an application",
        {"DIRECT_DATABASE_URL": HERE, "PGHOST": "there"},
        run=("mextrack", "pshop"),
        administrative=False,
        url=on("there", "mextrack", "pshop"),
        origin=f"PGHOST {IN_PROCESS}",
    ),
]

DIRECT = [
    Case(
        "direct: DIRECT_V before V in the process",
        {"DIRECT_DATABASE_URL": HERE, "DATABASE_URL": THERE},
        url=HERE,
        origin=f"DIRECT_DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "direct: not for an application, process",
        {"DIRECT_DATABASE_URL": HERE, "DATABASE_URL": THERE},
        administrative=False,
        url=THERE,
        origin=f"DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "direct: P_DIRECT_V before P_V",
        {"MEXTRACK_DIRECT_DATABASE_URL": HERE, "MEXTRACK_DATABASE_URL": THERE},
        url=HERE,
        origin=f"MEXTRACK_DIRECT_DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "direct: P_V before DIRECT_V",
        {"MEXTRACK_DATABASE_URL": HERE, "DIRECT_DATABASE_URL": THERE},
        url=HERE,
        origin=f"MEXTRACK_DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "direct: DIRECT_V before V in the package's .env, whatever the order of lines",
        files={MEXTRACK: f"DATABASE_URL={THERE}\nDIRECT_DATABASE_URL={HERE}\n"},
        url=HERE,
        origin="DIRECT_DATABASE_URL in ~/apps/mextrack/.env, line 2",
    ),
    Case(
        "direct: not for an application, .env",
        files={MEXTRACK: f"DATABASE_URL={THERE}\nDIRECT_DATABASE_URL={HERE}\n"},
        administrative=False,
        url=THERE,
        origin="DATABASE_URL in ~/apps/mextrack/.env, line 1",
    ),
    Case(
        "direct: alone, an application goes on to the next level",
        files={MEXTRACK: f"DIRECT_DATABASE_URL={HERE}"},
        administrative=False,
    ),
    Case(
        "direct: V of the process before DIRECT_V of .env",
        {"DATABASE_URL": HERE},
        {MEXTRACK: f"DIRECT_DATABASE_URL={THERE}"},
        url=HERE,
        origin=f"DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "direct: core's form has its variable's name",
        {"DIRECT_SHARED_DATABASE_URL": SHARED, "SHARED_DATABASE_URL": THERE},
        run=("core",),
        url=SHARED,
        origin=f"DIRECT_SHARED_DATABASE_URL {IN_PROCESS}",
    ),
]

LEVEL_2 = [
    Case(
        ".env: V",
        files={MEXTRACK: f"DATABASE_URL={HERE}\n"},
        url=HERE,
        origin="DATABASE_URL in ~/apps/mextrack/.env, line 1",
    ),
    Case(
        ".env: V before a server of the process and of the root",
        {"PGHOST": "there"},
        {MEXTRACK: f"\n# ours\nDATABASE_URL={HERE}\n", ROOT: "PGHOST=there"},
        url=HERE,
        origin="DATABASE_URL in ~/apps/mextrack/.env, line 3",
    ),
    Case(
        ".env: each package reads its own",
        files={CORE: f"SHARED_DATABASE_URL={SHARED}", MEXTRACK: f"DATABASE_URL={HERE}", PSHOP: f"DATABASE_URL={THERE}"},
        run=("core", "mextrack", "pshop"),
        url={"core": SHARED, "mextrack": HERE, "pshop": THERE},
        origin="DATABASE_URL in ~/apps/pshop/.env, line 1",
    ),
    Case(".env: P_V is a form of the process alone", files={MEXTRACK: f"MEXTRACK_DATABASE_URL={HERE}"}),
    Case(".env: V in the root's is nobody's", files={ROOT: f"DATABASE_URL={HERE}"}),
    Case(
        ".env: parent folders are not searched",
        files={"apps/.env": f"DATABASE_URL={HERE}", "../.env": f"DATABASE_URL={HERE}\nPGHOST=there\nAPP_ENV=test"},
    ),
    Case(
        ".env: .env.example is not read",
        files={"apps/mextrack/.env.example": f"DATABASE_URL={HERE}", ".env.example": "PGHOST=there"},
    ),
    Case(".env: what another package's holds does not matter", files={PSHOP: f"DATABASE_URL={HERE}\nthis is no line"}),
    Case(".env: empty", files={MEXTRACK: "", ROOT: "\n\n"}),
]

HELD = f"DATABASE_URL={HERE}"
FORMAT = [
    Case(
        f"format: {what}", files={MEXTRACK: text}, url=url, origin=f"DATABASE_URL in ~/apps/mextrack/.env, line {line}"
    )
    for what, text, line, url in [
        ("single quotes", f"DATABASE_URL='{HERE}'", 1, HERE),
        ("double quotes", f'DATABASE_URL="{HERE}"', 1, HERE),
        ("export", f"export {HELD}", 1, HERE),
        ("spaces around the sign", f"  DATABASE_URL = {HERE}  ", 1, HERE),
        ("comments", f"# one\n{HELD} # two", 2, HERE),
        ("a number sign in a value", "DATABASE_URL=postgresql://h/a#b", 1, "postgresql://h/a%23b"),
        ("byte order mark", f"\ufeff{HELD}", 1, HERE),
        ("CRLF", f"NOTE=x\r\n\r\n{HELD}\r\n", 3, HERE),
        ("the last of two lines", f"DATABASE_URL={THERE}\n{HELD}", 2, HERE),
        ("a value over two lines before it", f"NOTE='one\ntwo'\n{HELD}", 3, HERE),
        ("nothing is interpolated", "HOST=h\nDATABASE_URL=postgresql://h/${HOST}", 2, "postgresql://h/%24%7BHOST%7D"),
        ("nothing is interpolated in quotes", 'DATABASE_URL="postgresql://h/$HOST"', 1, "postgresql://h/%24HOST"),
        ("letters beyond ASCII", "DATABASE_URL=postgresql://zoë@h/größe", 1, "postgresql://zo%C3%AB@h/gr%C3%B6%C3%9Fe"),
    ]
]

LEVEL_3 = [
    Case(
        "server: PGHOST in the process, names from the manifests",
        {"PGHOST": "here"},
        run=ALL,
        url=on("here"),
        origin=f"PGHOST {IN_PROCESS}",
    ),
    Case(
        "server: PGHOST in the root .env",
        files={ROOT: "PGHOST=here"},
        run=ALL,
        url=on("here"),
        origin="PGHOST in ~/.env, line 1",
    ),
    Case(
        "server: PGHOSTADDR names one",
        {"PGHOSTADDR": "10.0.0.5"},
        url="postgresql:///mextrack_db?hostaddr=10.0.0.5",
        origin=f"PGHOSTADDR {IN_PROCESS}",
    ),
    Case(
        "server: PGSERVICE names one",
        {"PGSERVICE": "live"},
        url="postgresql:///mextrack_db?service=live",
        origin=f"PGSERVICE {IN_PROCESS}",
    ),
    Case(
        "server: everything else that libpq knows, the password with signs",
        files={ROOT: f"PGHOST=here\nPGPORT=6432\nPGUSER=ann\nPGPASSWORD='{PASSWORD}'\nPGSSLMODE=require"},
        url=f"postgresql://ann:{ENCODED}@here:6432/mextrack_db?sslmode=require",
        origin="PGHOST in ~/.env, line 1",
    ),
    Case(
        "server: a socket's folder",
        {"PGHOST": "/var/run/postgresql", "PGPORT": "6432"},
        url="postgresql:///mextrack_db?host=/var/run/postgresql&port=6432",
        origin=f"PGHOST {IN_PROCESS}",
    ),
    Case("server: PGUSER alone names none", {"PGUSER": "ann", "PGPASSWORD": PASSWORD}),
    Case("server: PGPORT alone names none", {"PGPORT": "6432"}, {ROOT: "PGPORT=6432\nPGUSER=ann"}),
    Case(
        "server: PGDATABASE is not the database of every package",
        {"PGHOST": "here", "PGDATABASE": "mine"},
        url=on("here", "mextrack"),
        origin=f"PGHOST {IN_PROCESS}",
    ),
    Case(
        "server: a blank PGHOST names none",
        {"PGHOST": ""},
        {ROOT: "PGHOST=here"},
        url=on("here", "mextrack"),
        origin="PGHOST in ~/.env, line 1",
    ),
    Case("server: blank everywhere", {"PGHOST": ""}, {ROOT: "PGHOST=\nPGPORT=6432"}),
    Case(
        "server: one named by the process takes nothing from the root .env",
        {"PGHOST": "here"},
        {ROOT: f"PGHOST=there\nPGPORT=6432\nPGUSER=bob\nPGPASSWORD='{PASSWORD}'"},
        url=on("here", "mextrack"),
        origin=f"PGHOST {IN_PROCESS}",
    ),
    Case(
        "server: the process completes the one named by the root .env, and wins",
        {"PGUSER": "ann", "PGPASSWORD": PASSWORD},
        {ROOT: "PGHOST=here\nPGPORT=6432\nPGUSER=bob"},
        url=f"postgresql://ann:{ENCODED}@here:6432/mextrack_db",
        origin="PGHOST in ~/.env, line 1",
    ),
    Case("server: PG* in a package's .env are not read", files={MEXTRACK: "PGHOST=there"}),
    Case(
        "server: a URL of its own for one package, the server for the others",
        {"MEXTRACK_DATABASE_URL": HERE, "PGHOST": "there"},
        run=("core", "pshop", "mextrack"),
        url={**on("there", "core", "pshop"), "mextrack": HERE},
        origin=f"MEXTRACK_DATABASE_URL {IN_PROCESS}",
    ),
]

LEVEL_4 = [
    Case("embedded: nothing is set", run=ALL, url=dict.fromkeys(ALL, EMBEDDED)),
    Case("embedded: in a test", {"APP_ENV": "test"}, environment="test", environment_origin="the process environment"),
    Case(
        "embedded: never in production; the message names all places",
        {"APP_ENV": "production"},
        error=(
            "No database is named for mextrack",
            "APP_ENV is production",
            "MEXTRACK_DIRECT_DATABASE_URL, MEXTRACK_DATABASE_URL, DIRECT_DATABASE_URL, DATABASE_URL in the process",
            "DATABASE_URL in ~/apps/mextrack/.env",
            "PGHOST in the process environment and ~/.env",
        ),
    ),
    Case(
        "embedded: production by a package's .env",
        files={MEXTRACK: "APP_ENV=production"},
        administrative=False,
        error=("No database is named for mextrack", "MEXTRACK_DATABASE_URL, DATABASE_URL in the process"),
    ),
    Case(
        "embedded: production with a server is fine",
        {"APP_ENV": "production", "PGHOST": "here", "PGSSLMODE": "verify-full"},
        url={name: f"{url}?sslmode=verify-full" for name, url in on("here", "mextrack").items()},
        origin=f"PGHOST {IN_PROCESS}",
        environment="production",
        environment_origin="the process environment",
    ),
]

ENVIRONMENT = [
    Case(
        "APP_ENV: process first",
        {"APP_ENV": "test"},
        {MEXTRACK: "APP_ENV=production", ROOT: "APP_ENV=production"},
        environment="test",
        environment_origin="the process environment",
    ),
    Case(
        "APP_ENV: then the package's .env",
        files={MEXTRACK: "APP_ENV=test", ROOT: "APP_ENV=production"},
        environment="test",
        environment_origin="~/apps/mextrack/.env, line 1",
    ),
    Case(
        "APP_ENV: then the root's",
        files={ROOT: "\nAPP_ENV=test"},
        environment="test",
        environment_origin="~/.env, line 2",
    ),
    Case(
        "APP_ENV: said aloud is told from the default",
        {"APP_ENV": "development"},
        environment_origin="the process environment",
    ),
    Case(
        "APP_ENV: another word is refused",
        {"APP_ENV": "staging"},
        error=("APP_ENV in the process", "'staging'", "development, test or production"),
    ),
    Case(
        "APP_ENV: case counts", files={ROOT: "APP_ENV=Production"}, error=("APP_ENV in ~/.env, line 1", "'Production'")
    ),
    Case("APP_ENV: blank is refused", {"APP_ENV": ""}, error=("APP_ENV in the process", "must be development")),
    Case(
        "APP_ENV: two values in one run are refused, the default counts as one",
        files={MEXTRACK: "APP_ENV=test"},
        run=("mextrack", "pshop"),
        error=(
            "APP_ENV differs",
            "mextrack: test (~/apps/mextrack/.env, line 1)",
            "pshop: development (nowhere set, the default)",
        ),
    ),
    Case("APP_ENV: a package outside the run does not matter", files={PSHOP: "APP_ENV=test"}),
    Case(
        "APP_ENV: one value of the process settles it",
        {"APP_ENV": "test"},
        {MEXTRACK: "APP_ENV=production"},
        run=("mextrack", "pshop"),
        url=dict.fromkeys(("mextrack", "pshop"), EMBEDDED),
        environment="test",
        environment_origin="the process environment",
    ),
]

ONE_DATABASE = [
    Case(
        "twice: two URLs, different users",
        {"MEXTRACK_DATABASE_URL": HERE},
        {PSHOP: "DATABASE_URL=postgresql://bob@HERE:5432/mine_db"},
        run=("mextrack", "pshop"),
        error=(
            "mextrack and pshop lead to one database",
            "mextrack by MEXTRACK_DATABASE_URL in the process",
            "pshop by DATABASE_URL in ~/apps/pshop/.env, line 1",
        ),
    ),
    Case(
        "twice: a URL and the manifest's name on a server",
        {"PGHOST": "localhost"},
        {MEXTRACK: "DATABASE_URL=postgresql://127.0.0.1/atriz_shared"},
        run=("core", "mextrack"),
        error=(
            "core and mextrack lead to one database",
            "core by PGHOST in the process",
            "DATABASE_URL in ~/apps/mextrack/.env",
        ),
    ),
    Case(
        "twice: one name on two ports is two databases",
        {"MEXTRACK_DATABASE_URL": "postgresql://h:1/x", "PSHOP_DATABASE_URL": "postgresql://h:2/x"},
        run=("mextrack", "pshop"),
        url={"mextrack": "postgresql://h:1/x", "pshop": "postgresql://h:2/x"},
        origin=f"PSHOP_DATABASE_URL {IN_PROCESS}",
    ),
    Case(
        "twice: a package outside the run does not matter",
        {"MEXTRACK_DATABASE_URL": HERE, "PSHOP_DATABASE_URL": HERE},
        url=HERE,
        origin=f"MEXTRACK_DATABASE_URL {IN_PROCESS}",
    ),
]

OTHER_SHARED = [
    Case(
        "shared: an app's differs from core's",
        files={CORE: f"SHARED_DATABASE_URL={SHARED}", MEXTRACK: f"DATABASE_URL={HERE}\nSHARED_DATABASE_URL={THERE}"},
        error=(
            "SHARED_DATABASE_URL in ~/apps/mextrack/.env, line 2 leads to postgresql://ann:***@there/other_db",
            "core itself leads to postgresql://ann:***@here/atriz_shared",
            "SHARED_DATABASE_URL in ~/packages/core/.env, line 1",
        ),
    ),
    Case(
        "shared: an app's differs from the embedded server's",
        files={PSHOP: f"SHARED_DATABASE_URL={SHARED}"},
        run=ALL,
        error=("SHARED_DATABASE_URL in ~/apps/pshop/.env, line 1", "the embedded server"),
    ),
    Case(
        "shared: the same database by another user is fine",
        files={
            CORE: f"SHARED_DATABASE_URL={SHARED}",
            MEXTRACK: f"{HELD}\nSHARED_DATABASE_URL=postgresql://web@here:5432/atriz_shared",
        },
        url=HERE,
        origin="DATABASE_URL in ~/apps/mextrack/.env, line 1",
    ),
    Case(
        "shared: the same database on the root's server is fine",
        files={ROOT: "PGHOST=here", MEXTRACK: f"SHARED_DATABASE_URL={SHARED}"},
        url=on("here", "mextrack"),
        origin="PGHOST in ~/.env, line 1",
    ),
    Case(
        "shared: V of the process is the same for both",
        {"SHARED_DATABASE_URL": SHARED},
        {MEXTRACK: f"{HELD}\nSHARED_DATABASE_URL={THERE}"},
        url=HERE,
        origin="DATABASE_URL in ~/apps/mextrack/.env, line 1",
    ),
    Case(
        "shared: an application is not stopped",
        files={MEXTRACK: f"{HELD}\nSHARED_DATABASE_URL={THERE}"},
        administrative=False,
        url=HERE,
        origin="DATABASE_URL in ~/apps/mextrack/.env, line 1",
    ),
    Case("shared: an app outside the run does not matter", files={PSHOP: f"SHARED_DATABASE_URL={THERE}"}),
    Case(
        "shared: an app's that is no URL",
        files={MEXTRACK: "SHARED_DATABASE_URL=atriz_shared"},
        error=("SHARED_DATABASE_URL in ~/apps/mextrack/.env, line 1 is not a URL",),
    ),
]

BAD_FILES = [
    Case(
        "file: a directory", files={MEXTRACK: DIRECTORY}, error=("~/apps/mextrack/.env cannot be read: Is a directory",)
    ),
    Case(
        "file: unreadable", files={ROOT: LOOP}, error=("~/.env cannot be read: ", "Mend its permissions or remove it")
    ),
    Case(
        "file: not UTF-8",
        files={MEXTRACK: "DATABASE_URL=größe".encode("latin-1")},
        error=("~/apps/mextrack/.env is not UTF-8 text", "NAME=value"),
    ),
    Case("file: UTF-16", files={MEXTRACK: HELD.encode("utf-16")}, error=("~/apps/mextrack/.env is not UTF-8 text",)),
    Case("file: binary", files={ROOT: b"\x7fELF\0\0\1"}, error=("~/.env is a binary file",)),
    *(
        Case(
            f"line: {what}",
            files={path: text},
            error=(f"~/{path}, line {line} cannot be parsed", "NAME=value", "single quotes"),
        )
        for what, path, text, line in [
            ("no sign", MEXTRACK, f"APP_ENV=test\n\n{PASSWORD}\n", 3),
            ("a name alone", ROOT, "export hunter", 1),
            ("a colon", ROOT, f"# here\nPGPASSWORD: {PASSWORD}", 2),
            ("a quote left open", MEXTRACK, f"\n\nDATABASE_URL='{HERE}\nAPP_ENV=test", 3),
            ("text after a quoted value", ROOT, f"PGHOST='here'\nPGPASSWORD='{PASSWORD}'{PASSWORD}", 2),
            ("a quote within quotes", ROOT, f"PGPASSWORD='{PASSWORD}'s'", 1),
            ("CRLF", ROOT, "PGHOST=here\r\n\r\nhunter\r\n", 3),
        ]
    ),
]

NO_URL = [
    Case(f"URL: {what} in {where}", process, files, error=(f"{origin} {words}",))
    for what, text, words in [
        ("blank", "", "is blank; give a URL"),
        ("spaces", "   ", "is blank"),
        ("not a URL", f"ann {PASSWORD}", "is not a URL;"),
        ("quoted twice", f"'{HERE}", "is not a URL of PostgreSQL (it begins with another scheme)"),
        ("another database's", f"mysql://ann:{ENCODED}@h/x", "is not a URL of PostgreSQL (it begins with mysql)"),
        ("no database", f"postgresql://ann:{ENCODED}@h:5432", "names no database"),
        (
            "a password as it is",
            f"postgresql://ann:{PASSWORD}@h/x",
            "cannot be parsed as a URL; in the user and the password",
        ),
        ("a port that is none", f"postgresql://ann:{ENCODED}@h:http/x", "has a port that is not a number"),
    ]
    for where, process, files, origin in [
        ("the process", {"DATABASE_URL": text}, {MEXTRACK: HELD}, f"DATABASE_URL {IN_PROCESS}"),
        (".env", {}, {MEXTRACK: f'DATABASE_URL="{text}"'}, "DATABASE_URL in ~/apps/mextrack/.env, line 1"),
    ]
]

CASES = [
    *(LEVEL_1 + DIRECT + LEVEL_2 + FORMAT + LEVEL_3 + LEVEL_4),
    *(ENVIRONMENT + ONE_DATABASE + OTHER_SHARED + BAD_FILES + NO_URL),
]


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """Return a workspace like the real one, with core and three apps."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*", "apps/*"]\n')
    add(root / "packages/core", "atriz_shared", "SHARED_DATABASE_URL")
    for name in APPS:
        add(root / "apps" / name, f"{name}_db", "DATABASE_URL", "core")
    return workspace.load(root)


def add(folder: Path, database: str, variable: str, *needs: str) -> None:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{folder.name}"\ndependencies = {list(needs)}\n'
        f'[tool.atriz.database]\nname = "{database}"\nurl = "{variable}"\n'
    )


def write(path: Path, content: object) -> None:
    if content is DIRECTORY:
        path.mkdir()
    elif content is LOOP:
        path.symlink_to(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_settings_page(case: Case, space: Workspace) -> None:
    """One row of the page: from these sources, this URL and environment, or this error."""
    for path, content in case.files.items():
        write(space.root / path, content)
    packages = [space.package(name) for name in case.run]
    before = dict(os.environ)

    if case.error:
        with pytest.raises(SettingsError) as caught:
            settings.resolve(space, packages, case.process, administrative=case.administrative)
        message = str(caught.value).replace(str(space.root), "~")
        for words in case.error:
            assert words in message
        assert "hunter" not in repr(caught.value)
        assert caught.value.status == 2
    else:
        targets = settings.resolve(space, packages, case.process, administrative=case.administrative)
        urls = {each.package.name: each.url.text(secrets=True) if each.url else EMBEDDED for each in targets}
        assert urls == (case.url if isinstance(case.url, dict) else dict.fromkeys(case.run, case.url))
        assert targets[-1].origin.replace(str(space.root), "~") == case.origin
        assert {each.environment for each in targets} == {case.environment}
        assert str(targets[-1].environment_origin).replace(str(space.root), "~") == str(case.environment_origin)
        assert "hunter" not in f"{targets} {targets[-1].url}"
    assert dict(os.environ) == before


def test_page_has_a_row_for_each_of_the_cases_it_promises() -> None:
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids)) >= 45


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_refused(space: Workspace) -> None:
    (space.root / ".env").write_text("PGHOST=here")
    (space.root / ".env").chmod(0)
    with pytest.raises(SettingsError, match="Permission denied"):
        settings.resolve(space, space.packages, {})


def test_process_environment_is_read_where_none_is_given(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEXTRACK_DATABASE_URL", HERE)
    (target,) = settings.resolve(space, [space.package("mextrack")])
    assert target.origin == f"MEXTRACK_DATABASE_URL {IN_PROCESS}"


def test_hyphen_in_a_folder_is_an_underscore_in_its_variable(space: Workspace) -> None:
    add(space.root / "apps/my-shop", "my_shop_db", "DATABASE_URL", "core")
    again = workspace.load(space.root)
    (target,) = settings.resolve(again, [again.package("my-shop")], {"MY_SHOP_DATABASE_URL": HERE})
    assert target.url is not None
    assert target.database == "mine_db"


def test_two_manifests_with_one_name_are_refused_on_the_embedded_server(space: Workspace) -> None:
    """Also where no URL is written anywhere, two packages never get one database."""
    add(space.root / "apps/twin", "pshop_db", "DATABASE_URL", "core")
    again = workspace.load(space.root)
    with pytest.raises(
        SettingsError, match="pshop and twin lead to one database, pshop_db: pshop by the embedded server"
    ):
        settings.resolve(again, again.packages, {})


def test_target_on_the_embedded_server_gets_its_url_when_the_server_runs(space: Workspace) -> None:
    (target,) = settings.resolve(space, [space.package("mextrack")], {})
    assert (target.url, target.database) == (None, "mextrack_db")
    server = settings.named_server({"PGHOST": "/tmp/s"})
    assert server is not None
    assert str(target.at(server).url) == "postgresql:///mextrack_db?host=/tmp/s"
    assert target.at(server).origin == "the embedded server"


def test_target_can_be_sent_to_another_process(space: Workspace) -> None:
    targets: tuple[Target, ...] = settings.resolve(space, [space.package("mextrack")], {"DATABASE_URL": HERE})
    assert pickle.loads(pickle.dumps(targets)) == targets


def test_value_shows_where_it_stands_and_not_what_it_is() -> None:
    value = Value("DATABASE_URL", HERE, "some/.env, line 3")
    assert str(value) == "DATABASE_URL in some/.env, line 3"
    assert "hunter" not in repr(value)


@pytest.mark.parametrize(
    ("process", "url"),
    [
        ({"PGHOST": "here", "PGPORT": "6432", "PGDATABASE": "mine"}, "postgresql://here:6432/postgres"),
        ({"PGSERVICE": "live"}, "postgresql:///postgres?service=live"),
        ({"PGUSER": "ann"}, None),
        ({"PGHOST": ""}, None),
        ({}, None),
    ],
)
def test_named_server_is_the_one_of_the_process_at_its_maintenance_database(
    process: dict[str, str], url: str | None
) -> None:
    server = settings.named_server(process)
    assert (server.text() if server else None) == url


@pytest.mark.parametrize(
    ("text", "home"),
    [("", None), ("/srv/pg", "/srv/pg"), ("pg", "/tree/pg"), ("~/pg", str(Path("~/pg").expanduser()))],
)
def test_server_home_is_read_against_the_workspace(text: str, home: str | None) -> None:
    found = settings.server_home(Path("/tree"), {"ATRIZ_SERVER_HOME": text})
    assert (str(found) if found else None) == home


def test_missing_file_holds_nothing(tmp_path: Path) -> None:
    assert settings.read_file(tmp_path / ".env") == {}
