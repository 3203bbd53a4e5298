"""Run the migrations of ``atriz_shared`` from Alembic, with the settings and safeguards that the atriz command uses."""

from __future__ import annotations

from atriz_database.migrations import run

run("atriz_core.models:Base.metadata")
