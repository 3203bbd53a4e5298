"""Declare the tables of ``mextrack_db``."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    MetaData,
    Numeric,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from atriz_database.model import NAMING_CONVENTION, reference

PrimaryKey = Annotated[
    UUID, mapped_column(primary_key=True, server_default=text("gen_random_uuid()"), comment="Identity of the row.")
]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now(), comment="When the row was made.")]
UpdatedAt = Annotated[
    datetime,
    mapped_column(
        server_default=func.now(),
        # A trigger writes it, so the ORM must read it again after every UPDATE.
        server_onupdate=FetchedValue(),
        comment="When the row last changed; a trigger keeps it.",
    ),
]


class Base(DeclarativeBase):
    """Collect the tables of this database."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {str: Text, datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own interface


class Vehicle(Base):
    """A vehicle of the fleet."""

    __tablename__ = "vehicles"
    __table_args__ = (
        CheckConstraint("btrim(registration) <> ''", name="registration_not_blank"),
        # Seventeen characters without I, O and Q, which look too much like 1 and 0 (ISO 3779).
        CheckConstraint("vin ~ '^[A-HJ-NPR-Z0-9]{17}$'", name="vin_form"),
        CheckConstraint("model_year BETWEEN 1900 AND 2100", name="model_year"),
        CheckConstraint("fuel IN ('petrol', 'diesel', 'hybrid', 'electric', 'gas', 'hydrogen')", name="fuel"),
        {"comment": "Vehicles of the fleet."},
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = reference(
        "core.users.id", nullable=False, comment="Who answers for the vehicle; a user of core."
    )
    registration: Mapped[str] = mapped_column(unique=True, comment="Number plate.")
    vin: Mapped[str | None] = mapped_column(unique=True, comment="Vehicle identification number, if it has one.")
    make: Mapped[str] = mapped_column(comment="Who built it.")
    model: Mapped[str] = mapped_column(comment="What its builder calls it.")
    model_year: Mapped[int | None] = mapped_column(SmallInteger, comment="Year of the model.")
    fuel: Mapped[str | None] = mapped_column(comment="What it runs on.")
    retired_at: Mapped[datetime | None] = mapped_column(comment="When it left the fleet, if it did.")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]


class TrackingData(Base):
    """Where one vehicle was at one moment; rows are added and never changed.

    The table is partitioned by month (see `mextrack.partitions`); a default partition takes what no month takes.
    """

    __tablename__ = "tracking_data"
    __table_args__ = (
        # BETWEEN on both sides also keeps NaN out, which PostgreSQL takes to be greater than every number.
        CheckConstraint("latitude BETWEEN -90 AND 90", name="latitude"),
        CheckConstraint("longitude BETWEEN -180 AND 180", name="longitude"),
        CheckConstraint("speed_kmh BETWEEN 0 AND 999", name="speed_kmh"),
        CheckConstraint("heading BETWEEN 0 AND 359", name="heading"),
        {
            "comment": "Where vehicles were, partitioned by month of recorded_at (UTC).",
            "postgresql_partition_by": "RANGE (recorded_at)",
        },
    )

    vehicle_id: Mapped[UUID] = mapped_column(
        ForeignKey("vehicles.id", ondelete="CASCADE"), primary_key=True, comment="Which vehicle it was."
    )
    recorded_at: Mapped[datetime] = mapped_column(
        primary_key=True, index=True, comment="When it was there, by the device's clock."
    )
    latitude: Mapped[float] = mapped_column(Double, comment="Degrees north of the equator (WGS 84).")
    longitude: Mapped[float] = mapped_column(Double, comment="Degrees east of Greenwich (WGS 84).")
    speed_kmh: Mapped[Decimal | None] = mapped_column(Numeric(4, 1), comment="Speed in kilometres an hour.")
    heading: Mapped[int | None] = mapped_column(
        SmallInteger, comment="Direction in whole degrees clockwise from north, 0 to 359."
    )
    received_at: Mapped[datetime] = mapped_column(server_default=func.now(), comment="When the position reached us.")
    altitude_m: Mapped[Decimal | None] = mapped_column(Numeric(6, 1), comment="Metres above sea level.")
    satellites: Mapped[int | None] = mapped_column(SmallInteger, comment="How many satellites the position rests on.")
