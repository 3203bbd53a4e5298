"""An application of FastAPI on a package's own database, with sign-in: what the apps have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from atriz_core import settings, unavailable, web
from atriz_core.accounts import Accounts
from atriz_database import Database

_LOG = logging.getLogger(__name__)


def create(package: str, title: str, *, accounts: Accounts | None = None, database: Database | None = None) -> FastAPI:
    """Return an application that answers below ``/auth``, and has the package's database for `OwnDatabase`.

    What is not given is found by the settings, and closed when the application ends. At its start it looks whether both
    databases can be used, and logs a line for each that cannot. It starts all the same: the server may be down for a
    moment, or a migration under way, and until that is over each request is answered with 503.

    Raise `SystemExit`, with one message, if the settings lead to nothing. For a server that calls it, as
    ``uvicorn --factory`` does, that is the one way to end without a traceback.
    """
    faults: list[str] = []
    with ExitStack() as failed:
        if accounts is None:
            with settings.noting(faults):
                accounts = failed.enter_context(Accounts.from_environment(package))
        if database is None:
            with settings.noting(faults):
                database = failed.enter_context(Database.from_environment(package))
        if accounts is None or database is None:
            raise SystemExit("\n".join(f"{title}: {fault}" for fault in dict.fromkeys(faults)))
        own = failed.pop_all()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with own:
            await asyncio.to_thread(_look, package, accounts, database)
            yield

    app = FastAPI(title=title, lifespan=lifespan)
    app.state.database = database
    web.install(app, accounts)
    return app


def _look(package: str, accounts: Accounts, database: Database) -> None:
    """Log what is wrong with either database."""
    for name, ask in (("core", accounts.ping), (package, partial(database.query, "SELECT 1"))):
        try:
            ask()
        except unavailable.ERRORS as error:
            if (why := unavailable.reason(error, name)) is None:
                raise
            _LOG.error("%s: %s", name, why)


def _get_database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


OwnDatabase = Annotated[Database, Depends(_get_database)]
"""The package's own database, as the type of a parameter."""
