"""Answer over HTTP: receipts and stock. ``uvicorn --factory pshop.web:create_app``, or ``nox -s serve:pshop``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from atriz_core import application
from atriz_core.accounts import Accounts
from atriz_core.application import OwnDatabase
from atriz_core.web import CurrentUser, problems, require_role
from atriz_database import Database
from pshop.models import Inventory, Sale


class SaleAnswer(BaseModel):
    """A receipt, as a client sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_id: UUID
    receipt_number: int
    status: str
    total: Decimal
    sold_at: datetime


class StockAnswer(BaseModel):
    """How much of a product lies in a place, as a client sees it."""

    model_config = ConfigDict(from_attributes=True)

    product_id: UUID
    location: str
    quantity: int


def create_app(accounts: Accounts | None = None, database: Database | None = None) -> FastAPI:
    """Return the application; what is not given is found by the settings."""
    app = application.create("pshop", "pshop", accounts=accounts, database=database)

    @app.get("/sales", response_model=list[SaleAnswer], responses=problems(401))
    def sales(user: CurrentUser, own: OwnDatabase, limit: int = 50) -> Sequence[Sale]:
        """Return the newest receipts of the cashier who asks, 200 at most."""
        with own.session(read_only=True) as session:
            mine = select(Sale).where(Sale.user_id == user.user_id).order_by(Sale.sold_at.desc())
            return session.scalars(mine.limit(max(0, min(limit, 200)))).all()

    @app.get(
        "/stock", response_model=list[StockAnswer], dependencies=[require_role("manager")], responses=problems(401, 403)
    )
    def stock(own: OwnDatabase) -> Sequence[Inventory]:
        """Return how much of each product lies where, for managers."""
        with own.session(read_only=True) as session:
            return session.scalars(select(Inventory).order_by(Inventory.location, Inventory.product_id)).all()

    return app
