"""Create tracking_data and its default partition.

Revision ID: c6562f8f0125
Revises: 1ddcab40e8a2
Create Date: 2026-11-09 10:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c6562f8f0125"
down_revision: str | None = "1ddcab40e8a2"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "tracking_data",
        sa.Column("vehicle_id", sa.Uuid(), nullable=False, comment="Which vehicle it was."),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was there, by the device's clock.",
        ),
        sa.Column("latitude", sa.Double(), nullable=False, comment="Degrees north of the equator (WGS 84)."),
        sa.Column("longitude", sa.Double(), nullable=False, comment="Degrees east of Greenwich (WGS 84)."),
        sa.Column("speed_kmh", sa.Numeric(precision=4, scale=1), nullable=True, comment="Speed in kilometres an hour."),
        sa.Column(
            "heading",
            sa.SmallInteger(),
            nullable=True,
            comment="Direction in whole degrees clockwise from north, 0 to 359.",
        ),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the position reached us.",
        ),
        sa.CheckConstraint("latitude BETWEEN -90 AND 90", name=op.f("ck_tracking_data_latitude")),
        sa.CheckConstraint("longitude BETWEEN -180 AND 180", name=op.f("ck_tracking_data_longitude")),
        sa.CheckConstraint("speed_kmh BETWEEN 0 AND 999", name=op.f("ck_tracking_data_speed_kmh")),
        sa.CheckConstraint("heading BETWEEN 0 AND 359", name=op.f("ck_tracking_data_heading")),
        sa.ForeignKeyConstraint(
            ["vehicle_id"], ["vehicles.id"], name=op.f("fk_tracking_data_vehicle_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("vehicle_id", "recorded_at", name=op.f("pk_tracking_data")),
        comment="Where vehicles were, partitioned by month of recorded_at (UTC).",
        postgresql_partition_by="RANGE (recorded_at)",
    )
    op.create_index(op.f("ix_tracking_data_recorded_at"), "tracking_data", ["recorded_at"], unique=False)
    # Only the default partition, which takes every row: the months to make depend on the day, and a revision has to be
    # the same on every day. mextrack.partitions makes them.
    op.execute("CREATE TABLE tracking_data_default PARTITION OF tracking_data DEFAULT")
    op.execute("COMMENT ON TABLE tracking_data_default IS 'Positions of months that have no partition (yet).'")


def downgrade() -> None:
    """Take the revision back."""
    # Its partitions, the months included, and their indexes go with it.
    op.drop_table("tracking_data")
