"""What the command writes: lines for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from atriz_database.errors import AtrizError
from atriz_database.fleet import Act, Outcome
from atriz_database.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_STYLES = {"failed": "bold red", "interrupted": "bold red", "not run": "yellow", "not seeded": "yellow"}
# Where the durations stand, unless a line is longer.
_LINE = 100
_QUIET_WORDS = ("up to date", "there already", "not there")


class Output:
    """Writes the lines of one call of the command.

    On a terminal it colours them, and shows below them what is under way; piped, they are plain. Either way a line is
    package, database, what happened, and how long it took.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._started = time.perf_counter()
        self._widths = (8, 12)
        self._live: Live | None = None
        self._under_way: dict[str, str] = {}
        self._console: Console | None = None
        if not as_json and not quiet and sys.stdout.isatty():
            # Loaded for a terminal only: a pipe has no use for what it costs.
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=True)

    def align(self, workspace: Workspace) -> None:
        """Make the columns as wide as this workspace's names."""
        packages = workspace.packages
        self._widths = (
            max([6, *(len(package.name) for package in packages)]),
            max([8, *(len(package.database) for package in packages)]),
        )

    def report(self, act: Act) -> None:
        """Write one act as it happens."""
        if self.as_json:
            return
        if act.kind == "warning":
            self.error(f"warning: {': '.join(filter(None, (act.package, act.what, act.subject, act.detail)))}")
            return
        if self._quiet:
            return
        if act.kind in ("notice", "progress") and self._console is not None and not self._console.is_dumb_terminal:
            self._show(act.package, act.what)
            return
        if act.kind == "progress":
            return
        words = ": ".join(word for word in (act.subject, act.detail) if word)
        if self._under_way:
            self._show(act.package, "")
        self._line(act.package, act.database, act.what, words, act.seconds)
        if act.progress and self._console is not None and not self._console.is_dumb_terminal:
            self._show(act.package, act.progress)

    def finish(self, outcomes: Sequence[Outcome], again: str = "") -> int:
        """Write how a run ended, and return the exit status.

        :param again: the command that was called, for those who are told to call it again.
        """
        self.close()
        if self.as_json:
            self.document([_plain(outcome) for outcome in outcomes])
        for outcome in outcomes:
            if outcome.state != "done":
                self.error(self._failure(outcome))
        if not self.as_json and any(outcome.state != "done" and outcome.at is not None for outcome in outcomes):
            self._ways(outcomes, again)
        statuses = {outcome.status for outcome in outcomes} - {0}
        # With several packages a wrong setting of one is a failure of the run.
        status = (
            statuses.pop() if len(statuses) == 1 and (len(outcomes) == 1 or statuses == {3}) else int(bool(statuses))
        )
        if not self.as_json and not (self._quiet and status == 0):
            self._summary(outcomes)
        return status

    def document(self, value: Any) -> None:
        """Write one JSON document; times are in ISO 8601."""
        print(json.dumps(value, indent=2, default=_said))

    def text(self, text: str = "") -> None:
        """Write a line of plain text, unless the call is quiet."""
        if not self._quiet and not self.as_json:
            print(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
        """Write rows in columns, the last one ragged; `styles` colours a row each on a terminal."""
        if self._quiet:
            return
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header) - 1)]
        for number, row in enumerate((header, *rows)):
            line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            if self._console is not None:
                style = "dim" if number == 0 else styles[number - 1] if styles else ""
                self._console.print(line, style=style or None, markup=False)
            else:
                print(line)

    def ask(self, question: str) -> bool:
        """Return whether a person at a terminal says yes; where there is nobody to ask, the answer is no."""
        if self.as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return False
        try:
            return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def error(self, text: str) -> None:
        """Write a message on stderr."""
        self.close()
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)

    def failure(self, error: AtrizError) -> int:
        """Write why the command could not begin, and return the exit status."""
        self.close()
        if self.as_json:
            self.document({"error": str(error)})
        self.error(f"atriz: {error}")
        return error.status

    def close(self) -> None:
        """Take away what is shown below the lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, package: str, database: str, what: str, words: str, seconds: float) -> None:
        first, second = self._widths
        took = f"{seconds:.2f} s" if seconds >= 0.005 else ""
        if self._console is None:
            line = f"{package:<{first}}  {database:<{second}}  {what:<10}  {words}"
            print(f"{line:<{_LINE}}  {took:>7}".rstrip() if took else line.rstrip(), flush=True)
            return
        from rich.text import Text

        style = _STYLES.get(what, "dim" if what in _QUIET_WORDS else "green")
        text = Text.assemble(
            (f"{package:<{first}}  ", "bold"), (f"{database:<{second}}  ", ""), (f"{what:<10}  ", style), words
        )
        if took:
            text.pad_right(max(_LINE - text.cell_len, 0))
            text.append(f"  {took:>7}", "dim")
        self._console.print(text)

    def _show(self, package: str, what: str) -> None:
        """Show on a terminal what is under way, without the thread that rich would start: workers are forked."""
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._under_way.pop(package, None)
        if what:
            self._under_way[package] = what
        line = "   ".join(f"{name}: {doing} …" for name, doing in self._under_way.items())
        self._live.update(Text(line, style="dim"), refresh=True)

    def _failure(self, outcome: Outcome) -> str:
        done = [act for act in outcome.acts if act.what == "applied"]
        before = f"\n    applied before it, and kept: {', '.join(act.subject for act in done)}" if done else ""
        return f"{outcome.package} ({outcome.database}) {outcome.state}: {outcome.error}{before}"

    def _ways(self, outcomes: Sequence[Outcome], again: str) -> None:
        """Write where a run that failed has left each database, how to go on, and how to go back."""
        first, second = self._widths
        places = [
            "now unknown" if outcome.at is None else f"now at {', '.join(outcome.at) or 'base'}" for outcome in outcomes
        ]
        third = max(map(len, places))
        for outcome, place in zip(outcomes, places, strict=True):
            counts = f"{len(outcome.applied)} applied, {len(outcome.pending)} pending"
            line = f"{outcome.package:<{first}}  {outcome.database:<{second}}  {place:<{third}}  "
            self.error(f"{line}{counts if outcome.at is not None else ''}".rstrip())
        failed = [outcome for outcome in outcomes if outcome.state == "failed"]
        revisions = " and ".join(f"{outcome.failed} of {outcome.package}" for outcome in failed if outcome.failed)
        mend = f"mend the cause{f' ({revisions})' if revisions else ''}, then " if failed else ""
        self.error(f"to go on: {mend}run `{again}` again")
        # Those that stand on another first, as over the fleet.
        if back := " && ".join(outcome.back for outcome in reversed(outcomes) if outcome.back):
            self.error(f"to go back to before it: `{back}`")

    def _summary(self, outcomes: Sequence[Outcome]) -> None:
        seconds = time.perf_counter() - self._started
        whats = Counter(act.what for outcome in outcomes for act in outcome.acts)
        parts = []
        for what, noun in (
            ("dropped", "database"),
            ("created", "database"),
            ("applied", "revision"),
            ("undone", "revision"),
            ("cleaned", "database"),
            ("seeded", "seed file"),
            ("verified", "revision"),
        ):
            if count := whats.pop(what, 0):
                parts.append(f"{count} {noun}{'s' if count != 1 else ''} {'run' if what == 'seeded' else what}")
        # Verbs that packages add have words of their own.
        parts += [f"{count} {what}" for what, count in whats.items() if what not in _QUIET_WORDS]
        states = Counter(outcome.state for outcome in outcomes)
        bad = [f"{states[state]} {state}" for state in ("failed", "interrupted", "not run") if states[state]]
        if bad:
            done = [outcome.package for outcome in outcomes if outcome.state == "done"]
            parts += [", ".join(bad), f"done: {', '.join(done)}" if done else "none done"]
        if not parts:
            count = len(outcomes)
            parts = [f"{count} database{'s' if count != 1 else ''}, nothing to do"]
        line = f"{'; '.join(parts)}  {seconds:.2f} s"
        if bad:
            self.error(line)
        elif self._console is not None:
            self._console.print(line, style="bold", markup=False)
        else:
            print(line)


def _said(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _plain(outcome: Outcome) -> dict[str, Any]:
    row = asdict(outcome)
    order = ("package", "database", "state", "applied", "undone", "failed", "pending", "at", "back", "acts", "error")
    row = {name: row[name] for name in (*order, "seconds")}
    row["acts"] = [{key: act[key] for key in ("what", "subject", "detail", "seconds")} for act in row["acts"]]
    return row
