"""Answer over HTTP: vehicles. ``uvicorn --factory mextrack.web:create_app``, or ``nox -s serve:mextrack``."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from atriz_core import application
from atriz_core.accounts import Accounts
from atriz_core.application import OwnDatabase
from atriz_core.web import CurrentUser, problems, require_role
from atriz_database import Database
from mextrack.models import Vehicle


class VehicleAnswer(BaseModel):
    """A vehicle, as a client sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_id: UUID
    registration: str
    make: str
    model: str


def create_app(accounts: Accounts | None = None, database: Database | None = None) -> FastAPI:
    """Return the application; what is not given is found by the settings."""
    app = application.create("mextrack", "mextrack", accounts=accounts, database=database)

    @app.get("/vehicles", response_model=list[VehicleAnswer], responses=problems(401))
    def vehicles(user: CurrentUser, own: OwnDatabase) -> Sequence[Vehicle]:
        """Return the vehicles that the user answers for."""
        with own.session(read_only=True) as session:
            mine = select(Vehicle).where(Vehicle.user_id == user.user_id).order_by(Vehicle.registration)
            return session.scalars(mine).all()

    @app.get(
        "/fleet",
        response_model=list[VehicleAnswer],
        dependencies=[require_role("manager")],
        responses=problems(401, 403),
    )
    def fleet(own: OwnDatabase) -> Sequence[Vehicle]:
        """Return all vehicles, for managers."""
        with own.session(read_only=True) as session:
            return session.scalars(select(Vehicle).order_by(Vehicle.registration)).all()

    return app
