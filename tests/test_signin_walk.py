"""What docs/signin.md shows of an app as a whole: the first try with curl, and the factory for production."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from atriz_database import workspace

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "signin.md").read_text()


def block(language: str) -> str:
    """Return the page's one block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def environ(_clones: Any) -> Iterator[dict[str, str]]:
    """Yield an environment that names seeded databases of core and mextrack."""
    with ExitStack() as stack:
        made = {"AUTH_KEYS": "2026-a:" + "k" * 43, "APP_ENV": "test"}
        for package in workspace.load(ROOT).packages:
            if package.name in ("core", "mextrack"):
                target = _clones.make(package, seeded=True)
                stack.callback(_clones.drop, target)
                made[f"{package.name.upper()}_{package.variable}"] = target.url.text(secrets=True)
        yield made


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_first_try_with_curl_does_what_the_page_says(environ: dict[str, str]) -> None:
    """Served as the session serves it, the lines run as they stand: signed in, known, two vehicles, signed out."""
    command = [Path(sys.executable).with_name("uvicorn"), "--factory", "mextrack.web:create_app", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environ, stderr=subprocess.PIPE, text=True) as app:
        try:
            assert app.stderr is not None
            port = next(
                found[1] for line in app.stderr if (found := re.search(r"running on http://[\d.]+:(\d+)", line))
            )
            lines = block("bash").replace(":8000", f":{port}").replace("\ncurl", "\necho; curl")
            done = subprocess.run(["bash", "-euc", lines], capture_output=True, text=True, timeout=60)
        finally:
            app.terminate()
            app.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    _, tokens, me, vehicles, signed_out, after = done.stdout.split("\n")
    assert '"expires_in":900' in tokens
    assert '"name":"Bruno Ferreira","roles":["manager"]' in me
    assert vehicles.count('"registration"') == 2
    assert signed_out == ""
    assert "The token is not valid, or no longer." in after


def test_factory_of_the_page_serves_production(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys, databases and mail it makes the app; without its mail the app is refused, and the page named."""
    for name, value in {**environ, "APP_ENV": "production"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    serving = types.ModuleType("serving")
    exec(block("py"), serving.__dict__)
    app = serving.create_app()
    assert {"/auth/login", "/vehicles"} <= app.openapi()["paths"].keys()
    app.state.accounts.close()
    app.state.database.close()
    with pytest.raises(SystemExit, match=r"docs/signin\.md"):
        serving.web.create_app()


def test_wrong_settings_end_uvicorn_with_one_line(environ: dict[str, str]) -> None:
    """What the factory says is all that is said: no traceback of a server's."""
    done = subprocess.run(
        [Path(sys.executable).with_name("uvicorn"), "--factory", "mextrack.web:create_app", "--port", "0"],
        cwd=ROOT,
        env=os.environ | environ | {"AUTH_KEYS": "a:hunter2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mextrack: AUTH_KEYS cannot be used")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr
