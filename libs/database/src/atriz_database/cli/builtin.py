"""The verbs that the library brings."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from atriz_database import graph, server, verbs
from atriz_database.cli.verb import Call, Verb
from atriz_database.fleet import Outcome
from atriz_database.look import Look

_STATE_STYLES = {"up-to-date": "green", "pending": "yellow", "missing": "yellow"}


def _package(parser: ArgumentParser) -> None:
    parser.add_argument("package", nargs="?", metavar="PACKAGE", help="the folder's name of one package (default: all)")


def _package_and_only(parser: ArgumentParser) -> None:
    _package(parser)
    parser.add_argument("--only", action="store_true", help="leave out what PACKAGE depends on")


def _fleet_verb(verb: Callable[..., list[Outcome]]) -> Callable[[Call], int]:
    def run(call: Call) -> int:
        return call.output.finish(verb(call.workspace, call.arguments.package, call.options, call.output.report))

    return run


def _configure_status(parser: ArgumentParser) -> None:
    _package(parser)
    parser.add_argument("--exit-code", action="store_true", help="exit with 3 if any database is not up to date")


def _status(call: Call) -> int:
    looks = verbs.status(call.workspace, call.arguments.package, call.options)
    if call.output.as_json:
        call.output.document([_plain_look(each) for each in looks])
    else:
        rows = [_status_row(each) for each in looks]
        styles = [_STATE_STYLES.get(each.state, "red") for each in looks]
        if not call.arguments.quiet:
            call.output.table(("package", "database", "state", "current", "pending"), rows, styles)
        for each in looks:
            _explain(call, each)
    if call.arguments.exit_code and any(each.state != "up-to-date" or each.edited for each in looks):
        return 3
    return 0


def _plain_look(look: Look) -> dict[str, Any]:
    return {
        "package": look.target.package.name,
        "database": look.target.database,
        "state": look.state,
        "current": list(look.current),
        "heads": list(look.heads),
        "pending": list(look.pending),
        "edited": list(look.edited),
    }


def _status_row(look: Look) -> tuple[str, str, str, str, str]:
    pending = f"{len(look.pending)}: {', '.join(look.pending)}" if look.pending else "-"
    return look.target.package.name, look.target.database, look.state, ", ".join(look.current) or "-", pending


def _explain(call: Call, look: Look) -> None:
    if look.error is not None and look.state != "missing":
        call.output.error(f"{look.target.package.name}: {look.error}")
    if look.state == "diverged":
        heads = ", ".join(look.heads)
        call.output.error(
            f"{look.target.package.name}: several heads or branches: {heads} in the files, "
            f"{', '.join(look.current) or 'none'} in {look.target.database}. `atriz migrate` says how to mend it."
        )
    if look.state == "ahead":
        call.output.error(
            f"{look.target.package.name}: {look.target.database} is at {', '.join(look.current)}, which this code does "
            "not know. Update the checkout."
        )
    for revision in look.edited:
        call.output.error(f"{look.target.package.name}: the file of {revision} was edited after it was applied here")


def _environment(call: Call) -> int:
    origins = verbs.environment(call.workspace, call.arguments.package)
    if call.output.as_json:
        call.output.document([asdict(origin) for origin in origins])
        return 0
    rows = [(each.package, each.name, each.value, each.origin) for each in origins]
    call.output.table(("package", "setting", "value", "from"), rows)
    return 0


def _configure_server(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=("status", "start", "stop"), default="status", help="what to do (default: status)"
    )


def _server(call: Call) -> int:
    embedded = server.of(call.workspace.root)
    did = ""
    if call.arguments.action == "start":
        did = "started" if server.start(embedded, lambda text: call.output.text(f"{text} …")) else "runs already"
    elif call.arguments.action == "stop":
        did = "stopped" if server.stop(embedded) else "was not running"
    pid = embedded.pid()
    state = {
        "running": pid is not None,
        "pid": pid,
        "url": str(embedded.url),
        "user": embedded.user.pw_name,
        "data": str(embedded.data),
        "log": str(embedded.log),
    }
    if call.output.as_json:
        call.output.document(state)
        return 0
    did = did or ("runs" if pid else "is not running; a verb that needs it starts it")
    call.output.text(f"the embedded server {did}")
    for key in ("pid", "url", "user", "data", "log"):
        if state[key] is not None:
            call.output.text(f"  {key:<5} {state[key]}")
    return 0


def _configure_graph(parser: ArgumentParser) -> None:
    parser.add_argument("--mermaid", action="store_true", help="print it as a Mermaid diagram")
    parser.add_argument(
        "--affected",
        metavar="BASE",
        help="only the packages that changed since the git revision BASE, and what depends on them",
    )


def _graph(call: Call) -> int:
    found = graph.graph(call.workspace)
    if call.arguments.affected:
        found, reason = graph.affected(call.workspace, call.arguments.affected)
        if reason:
            call.output.error(f"atriz: {reason}")
    if call.output.as_json:
        call.output.document([asdict(node) for node in found])
    elif call.arguments.mermaid:
        print(graph.mermaid(found))
    else:
        rows = [(node.name, node.folder, node.database or "-", ", ".join(node.requires) or "-") for node in found]
        call.output.table(("package", "folder", "database", "depends on"), rows)
    return 0


VERBS: Mapping[str, Verb] = {
    "setup": Verb(
        "Create, migrate and seed: from nothing to working; on what is there, only what is missing.",
        _fleet_verb(verbs.setup),
        _package_and_only,
        "examples:\n  atriz setup\n  atriz setup mextrack     core first, then mextrack",
    ),
    "create": Verb(
        "Make the databases that are not there yet, and label them.",
        _fleet_verb(verbs.create),
        _package,
        "examples:\n  atriz create\n  atriz create core",
    ),
    "migrate": Verb(
        "Bring databases to head: core first, then the apps side by side.",
        _fleet_verb(verbs.migrate),
        _package_and_only,
        "A missing database is created first, but for production.\n\n"
        "examples:\n  atriz migrate\n  atriz migrate mextrack          core to head first\n"
        "  atriz migrate mextrack --only   mextrack alone",
    ),
    "seed": Verb(
        "Run the seed files, in alphabetical order, one transaction each; skipped in production.",
        _fleet_verb(verbs.seed),
        _package,
        "examples:\n  atriz seed\n  atriz seed pshop",
    ),
    "status": Verb(
        "Show where each database stands: current, heads, pending, edited since applied.",
        _status,
        _configure_status,
        "examples:\n  atriz status\n  atriz status --json\n  atriz status --exit-code     3 unless all are up to date",
    ),
    "env": Verb(
        "Show every setting and where it comes from, secrets masked.",
        _environment,
        _package,
        "examples:\n  atriz env\n  atriz env mextrack --json",
    ),
    "server": Verb(
        "Show, start or stop the embedded PostgreSQL of this checkout.",
        _server,
        _configure_server,
        "examples:\n  atriz server\n  atriz server stop",
    ),
    "graph": Verb(
        "Show the packages and what each depends on.",
        _graph,
        _configure_graph,
        "examples:\n  atriz graph --mermaid\n  atriz graph --affected origin/main --json",
    ),
}
