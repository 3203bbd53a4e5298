"""Keep updated_at by a trigger.

Revision ID: ea1a3c567a67
Revises: 078bfc9208b5
Create Date: 2026-11-05 11:30:00
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

revision: str = "ea1a3c567a67"
down_revision: str | None = "078bfc9208b5"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.execute(
        """
        CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.updated_at := now();
            RETURN NEW;
        END
        $$
        """
    )
    op.execute("COMMENT ON FUNCTION set_updated_at() IS 'Keeps updated_at, as a BEFORE UPDATE trigger.'")
    op.execute(
        "CREATE TRIGGER set_updated_at BEFORE UPDATE ON user_profiles FOR EACH ROW EXECUTE FUNCTION set_updated_at()"
    )


def downgrade() -> None:
    """Take the revision back."""
    op.execute("DROP TRIGGER set_updated_at ON user_profiles")
    op.execute("DROP FUNCTION set_updated_at()")
