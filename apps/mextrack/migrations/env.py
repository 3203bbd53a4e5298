"""Run the migrations of ``mextrack_db`` from Alembic, with the settings and safeguards that the atriz command uses."""

from __future__ import annotations

from atriz_database.migrations import run

run("mextrack.models:Base.metadata")
