"""Add altitude_m and satellites to tracking_data.

Revision ID: e131ac692e23
Revises: c6562f8f0125
Create Date: 2026-11-11 16:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "e131ac692e23"
down_revision: str | None = "c6562f8f0125"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column(
        "tracking_data",
        sa.Column("altitude_m", sa.Numeric(precision=6, scale=1), nullable=True, comment="Metres above sea level."),
    )
    op.add_column(
        "tracking_data",
        sa.Column("satellites", sa.SmallInteger(), nullable=True, comment="How many satellites the position rests on."),
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_column("tracking_data", "satellites")
    op.drop_column("tracking_data", "altitude_m")
