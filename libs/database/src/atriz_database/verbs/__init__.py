"""The verbs, one function each. They return values and never print; ``atriz`` is a thin shell over them.

Names are loaded when they are first used (PEP 562): a command has one verb, and all of them take as long to import as
to look at four databases. So no file here has the name of a function: it would take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atriz_database.lazy import loading

if TYPE_CHECKING:
    from atriz_database.run import Options, on_each, read
    from atriz_database.verbs.author import Edit, edits, labels, matching, new, relabel, repair, stamp
    from atriz_database.verbs.backward import clean, drop, existing, reset, rollback
    from atriz_database.verbs.findings import Finding, check
    from atriz_database.verbs.forward import create, migrate, seed, setup
    from atriz_database.verbs.grants import grant
    from atriz_database.verbs.origins import Origin, Written, environment, write_environment
    from atriz_database.verbs.show import Plan, Step, plan, status
    from atriz_database.verbs.verification import verify

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

_MODULES = {
    "Edit": "verbs.author",
    "Finding": "verbs.findings",
    "Options": "run",
    "Origin": "verbs.origins",
    "Plan": "verbs.show",
    "Step": "verbs.show",
    "Written": "verbs.origins",
    "check": "verbs.findings",
    "clean": "verbs.backward",
    "create": "verbs.forward",
    "drop": "verbs.backward",
    "edits": "verbs.author",
    "environment": "verbs.origins",
    "existing": "verbs.backward",
    "grant": "verbs.grants",
    "labels": "verbs.author",
    "matching": "verbs.author",
    "migrate": "verbs.forward",
    "new": "verbs.author",
    "on_each": "run",
    "plan": "verbs.show",
    "read": "run",
    "relabel": "verbs.author",
    "repair": "verbs.author",
    "reset": "verbs.backward",
    "rollback": "verbs.backward",
    "seed": "verbs.forward",
    "setup": "verbs.forward",
    "stamp": "verbs.author",
    "status": "verbs.show",
    "verify": "verbs.verification",
    "write_environment": "verbs.origins",
}

__getattr__ = loading(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
