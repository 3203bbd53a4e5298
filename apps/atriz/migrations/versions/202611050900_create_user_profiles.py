"""Create user_profiles.

Revision ID: 078bfc9208b5
Revises:
Create Date: 2026-11-05 09:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "078bfc9208b5"
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
        "user_profiles",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("user_id", sa.Uuid(), nullable=False, comment="Whose profile it is; a user of core."),
        sa.Column("display_name", sa.Text(), nullable=False, comment="Name shown on the site."),
        sa.Column("headline", sa.Text(), nullable=True, comment="What the person does, in one line."),
        sa.Column("bio", sa.Text(), nullable=True, comment="What the person says of themselves."),
        sa.Column("location", sa.Text(), nullable=True, comment="Where the person is, as they put it."),
        sa.Column("avatar_url", sa.Text(), nullable=True, comment="Picture of the person."),
        sa.Column("website_url", sa.Text(), nullable=True, comment="The person's own site."),
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
        sa.CheckConstraint("btrim(display_name) <> ''", name=op.f("ck_user_profiles_display_name_not_blank")),
        sa.CheckConstraint("char_length(bio) <= 2000", name=op.f("ck_user_profiles_bio_length")),
        sa.CheckConstraint("avatar_url ~ '^https?://'", name=op.f("ck_user_profiles_avatar_url_form")),
        sa.CheckConstraint("website_url ~ '^https?://'", name=op.f("ck_user_profiles_website_url_form")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_profiles")),
        sa.UniqueConstraint("user_id", name=op.f("uq_user_profiles_user_id")),
        comment="How people show themselves on the site, one row for each.",
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("user_profiles")
    # The extension pgcrypto stays: it may have been there before, and others may use it by now.
