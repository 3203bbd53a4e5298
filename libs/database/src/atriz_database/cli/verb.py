"""What a verb of the command is; packages add theirs through the entry point group ``atriz.verbs``.

An entry point's name is the verb's, and its value a :class:`Verb`::

    [project.entry-points."atriz.verbs"]
    partitions = "mextrack.verbs:partitions"
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from atriz_database.cli.output import Output
from atriz_database.run import Options
from atriz_database.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a verb."""

    workspace: Workspace
    arguments: Namespace
    """What the verb's own options were given."""
    options: Options
    output: Output


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: a sentence for the manual, its options, and what it does."""

    summary: str
    """One sentence, for ``atriz --help`` and as the first line of the verb's own help."""
    run: Callable[[Call], int]
    """Does it, and returns the exit status. An `AtrizError` it raises is shown to the user."""
    configure: Callable[[ArgumentParser], None] = lambda parser: None
    """Adds its options to a parser that has the common ones."""
    details: str = ""
    """Examples and what else its help should say, below the options."""
