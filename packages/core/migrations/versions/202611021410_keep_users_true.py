"""Lower e-mail addresses and keep updated_at, by triggers.

Revision ID: 2aa90cdaf02d
Revises: 86209fecf615
Create Date: 2026-11-02 14:10:00
"""

from __future__ import annotations

from collections.abc import Sequence

from atriz_database.migrations import sql_file

revision: str = "2aa90cdaf02d"
down_revision: str | None = "86209fecf615"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

upgrade, downgrade = sql_file(__file__)
