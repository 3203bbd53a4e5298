"""Create vehicles.

Revision ID: 16a7134fd60c
Revises:
Create Date: 2026-11-06 09:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "16a7134fd60c"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    # gen_random_uuid() is built in from PostgreSQL 13; before, the extension pgcrypto brings it. In one DO block and
    # not in Python, so that offline SQL (--sql) decides on the server it is run against.
    op.execute(
        """
        DO $$
        BEGIN
            IF current_setting('server_version_num')::int < 130000 THEN
                CREATE EXTENSION IF NOT EXISTS pgcrypto;
            END IF;
        END
        $$
        """
    )
    op.create_table(
        "vehicles",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("user_id", sa.Uuid(), nullable=False, comment="Who answers for the vehicle; a user of core."),
        sa.Column("registration", sa.Text(), nullable=False, comment="Number plate."),
        sa.Column("vin", sa.Text(), nullable=True, comment="Vehicle identification number, if it has one."),
        sa.Column("make", sa.Text(), nullable=False, comment="Who built it."),
        sa.Column("model", sa.Text(), nullable=False, comment="What its builder calls it."),
        sa.Column("model_year", sa.SmallInteger(), nullable=True, comment="Year of the model."),
        sa.Column("fuel", sa.Text(), nullable=True, comment="What it runs on."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed; a trigger keeps it.",
        ),
        sa.CheckConstraint("btrim(registration) <> ''", name=op.f("ck_vehicles_registration_not_blank")),
        sa.CheckConstraint("vin ~ '^[A-HJ-NPR-Z0-9]{17}$'", name=op.f("ck_vehicles_vin_form")),
        sa.CheckConstraint("model_year BETWEEN 1900 AND 2100", name=op.f("ck_vehicles_model_year")),
        sa.CheckConstraint(
            "fuel IN ('petrol', 'diesel', 'hybrid', 'electric', 'gas', 'hydrogen')", name=op.f("ck_vehicles_fuel")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vehicles")),
        sa.UniqueConstraint("registration", name=op.f("uq_vehicles_registration")),
        sa.UniqueConstraint("vin", name=op.f("uq_vehicles_vin")),
        comment="Vehicles of the fleet.",
    )
    op.create_index(op.f("ix_vehicles_user_id"), "vehicles", ["user_id"], unique=False)


def downgrade() -> None:
    """Take the revision back."""
    op.drop_index(op.f("ix_vehicles_user_id"), table_name="vehicles")
    op.drop_table("vehicles")
    # The extension pgcrypto stays: it may have been there before, and others may use it by now.
