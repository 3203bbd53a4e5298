"""Keep updated_at by a trigger.

Revision ID: ef0a5650cf86
Revises: c2309aa6ec77
Create Date: 2026-11-07 10:30:00
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

revision: str = "ef0a5650cf86"
down_revision: str | None = "c2309aa6ec77"
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
    op.execute("CREATE TRIGGER set_updated_at BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION set_updated_at()")


def downgrade() -> None:
    """Take the revision back."""
    op.execute("DROP TRIGGER set_updated_at ON products")
    op.execute("DROP FUNCTION set_updated_at()")
