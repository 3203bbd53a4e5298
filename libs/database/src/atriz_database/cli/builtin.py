"""The verbs that the library brings, in the order of the manual."""

from __future__ import annotations

from collections.abc import Mapping

from atriz_database.cli import authoring, changing, showing
from atriz_database.cli.verb import Verb

VERBS: Mapping[str, Verb] = {**changing.VERBS, **showing.VERBS, **authoring.VERBS}
