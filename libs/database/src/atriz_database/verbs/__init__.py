"""The verbs, one function each. They return values and never print; ``atriz`` is a thin shell over them."""

from atriz_database.run import Options, on_each, read
from atriz_database.verbs.author import Edit, edits, labels, matching, new, relabel, repair, stamp
from atriz_database.verbs.backward import clean, drop, existing, reset, rollback
from atriz_database.verbs.check import Finding, check
from atriz_database.verbs.environment import Origin, Written, environment, write_environment
from atriz_database.verbs.forward import create, migrate, seed, setup
from atriz_database.verbs.grant import grant
from atriz_database.verbs.show import Plan, Step, plan, status
from atriz_database.verbs.verify import verify

__all__ = [
    "Edit",
    "Finding",
    "Options",
    "Origin",
    "Plan",
    "Step",
    "Written",
    "check",
    "clean",
    "create",
    "drop",
    "edits",
    "environment",
    "existing",
    "grant",
    "labels",
    "matching",
    "migrate",
    "new",
    "on_each",
    "plan",
    "read",
    "relabel",
    "repair",
    "reset",
    "rollback",
    "seed",
    "setup",
    "stamp",
    "status",
    "verify",
    "write_environment",
]
