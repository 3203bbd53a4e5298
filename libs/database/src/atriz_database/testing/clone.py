"""Databases for single tests, cloned from their packages' templates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from atriz_database import seeds
from atriz_database.errors import AtrizError
from atriz_database.settings import Target
from atriz_database.testing import template
from atriz_database.testing.leak import Leak, leaks
from atriz_database.testing.run import Run
from atriz_database.testing.template import Template
from atriz_database.url import DatabaseURL
from atriz_database.workspace import Package

ORIGIN = "the test run"


class Clones:
    """What makes a run's databases, and remembers the templates it has found."""

    def __init__(self, run: Run) -> None:
        """Begin, without asking the server anything."""
        self._run = run
        self._templates: dict[tuple[Path, str], Template | AtrizError] = {}

    def make(self, package: Package, *, seeded: bool = False, today: date | None = None) -> Target:
        """Return a new database of the package, its template made before if it isn't there.

        :param seeded: whether the package's seeds are run in it. They see the clock, so no template has them.
        :param today: a day of the month that the template is of, this month's if not given.

        Raise what creating and migrating a database raises, once and for each further one of the package, and
        `SeedError` if a seed file is broken.
        """
        found = self._template(package, today or datetime.now(UTC).date())
        if isinstance(found, AtrizError):
            # Without the places where it was raised before.
            raise found.with_traceback(None)
        name = self._run.new_name(package.name)
        template.clone(self._run, found, name)
        made = self._target(package, name)
        if seeded:
            try:
                list(seeds.seed(made))
            except BaseException:
                self._run.drop(name)
                raise
        return made

    def drop(self, target: Target) -> Sequence[Leak]:
        """Drop a database; return the connections that were still open to it, which are ended."""
        found = leaks(self._run.connection, target.database)
        self._run.drop(target.database)
        return found

    def keep(self, target: Target, test: str) -> None:
        """Leave a database for a later run to drop."""
        self._run.keep(target.database, test)

    def _template(self, package: Package, today: date) -> Template | AtrizError:
        key = (package.folder, f"{today:%Y-%m}")
        if key not in self._templates:
            try:
                self._templates[key] = template.ensure(self._run, self._target(package, "postgres"), today)
            except AtrizError as error:
                self._templates[key] = error
        return self._templates[key]

    def _target(self, package: Package, name: str) -> Target:
        server = self._run.server
        assert server.url is not None, "a target on the embedded server is given its URL first"
        return target_of(package, server.url.with_database(name), server.origin)


def target_of(package: Package, url: DatabaseURL, origin: str) -> Target:
    """Return the target of a test: its environment is ``test``, whatever APP_ENV says.

    :param origin: where the server is named; that of the embedded server, where it is on that.
    """
    return Target(package, url, origin, "test", ORIGIN)
