"""Create attempts.

Revision ID: 5b8e2f7c40d1
Revises: 3c1f0d6a9b27
Create Date: 2026-11-23 13:35:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "5b8e2f7c40d1"
down_revision: str | None = "3c1f0d6a9b27"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    # Unlogged: a failed sign-in then waits for no disk, and nobody makes us write by guessing. After a crash of the
    # server all begins at nought, which only the server's own crash can bring about.
    op.create_table(
        "attempts",
        sa.Column(
            "subject",
            sa.LargeBinary(),
            nullable=False,
            comment="SHA-256 of what is counted: an account, an address, or both; never the text that somebody typed.",
        ),
        sa.Column(
            "level",
            sa.Double(),
            nullable=False,
            comment="How many attempts count as of counted_at; sinks with time.",
        ),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False, comment="When the last one was counted."),
        sa.Column(
            "trusted_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Until when the account's own limit does not hold for this address, after a sign-in from there.",
        ),
        sa.CheckConstraint("level >= 0 AND level < 'Infinity'", name=op.f("ck_attempts_level")),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_attempts")),
        comment="Failed sign-ins, and mails asked for, by account and by address.",
        prefixes=["UNLOGGED"],
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("attempts")
