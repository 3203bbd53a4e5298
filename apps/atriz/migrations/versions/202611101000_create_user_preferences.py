"""Create user_preferences.

Revision ID: 2587a64f4bf5
Revises: ea1a3c567a67
Create Date: 2026-11-10 10:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "2587a64f4bf5"
down_revision: str | None = "ea1a3c567a67"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "user_preferences",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("user_id", sa.Uuid(), nullable=False, comment="Whose preferences they are; a user of core."),
        sa.Column(
            "theme",
            sa.Text(),
            server_default=sa.text("'system'::text"),
            nullable=False,
            comment="Colours of the site: system, light or dark.",
        ),
        sa.Column(
            "language",
            sa.Text(),
            server_default=sa.text("'en'::text"),
            nullable=False,
            comment="Language of the site, such as en or pt-BR.",
        ),
        sa.Column(
            "time_zone",
            sa.Text(),
            server_default=sa.text("'UTC'::text"),
            nullable=False,
            comment="Name of the time zone that times are shown in.",
        ),
        sa.Column(
            "email_notifications",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="Whether news about the person's own account comes by mail.",
        ),
        sa.Column(
            "newsletter",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether the newsletter comes by mail.",
        ),
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
        sa.CheckConstraint("theme IN ('system', 'light', 'dark')", name=op.f("ck_user_preferences_theme")),
        sa.CheckConstraint("language ~ '^[a-z]{2,3}(-[A-Z]{2})?$'", name=op.f("ck_user_preferences_language_form")),
        sa.CheckConstraint("btrim(time_zone) <> ''", name=op.f("ck_user_preferences_time_zone_not_blank")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_preferences")),
        sa.UniqueConstraint("user_id", name=op.f("uq_user_preferences_user_id")),
        comment="What people prefer on the site, one row for each.",
    )
    op.execute(
        "CREATE TRIGGER set_updated_at BEFORE UPDATE ON user_preferences FOR EACH ROW EXECUTE FUNCTION set_updated_at()"
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("user_preferences")
