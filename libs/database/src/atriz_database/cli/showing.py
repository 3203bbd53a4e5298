"""Verbs that show and change nothing."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict, astuple
from textwrap import indent
from typing import Any

from atriz_database import server, verbs
from atriz_database.cli.arguments import package, package_and_only
from atriz_database.cli.verb import Call, Verb
from atriz_database.look import Look

_STATE_STYLES = {"up-to-date": "green", "pending": "yellow", "missing": "yellow"}


def _configure_status(parser: ArgumentParser) -> None:
    package(parser)
    parser.add_argument("--exit-code", action="store_true", help="exit with 3 if any database is not up to date")


def _status(call: Call) -> int:
    looks = verbs.status(call.workspace, call.arguments.package, call.options)
    if call.output.as_json:
        call.output.document([_plain_look(each) for each in looks])
    else:
        rows = [_status_row(each) for each in looks]
        styles = [_STATE_STYLES.get(each.state, "red") for each in looks]
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


def _configure_plan(parser: ArgumentParser) -> None:
    package_and_only(parser)
    parser.add_argument("--sql", action="store_true", help="show the SQL of each revision")


def _plan(call: Call) -> int:
    plans = verbs.plan(call.workspace, call.arguments.package, call.options)
    if call.output.as_json:
        call.output.document([_plain_plan(each) for each in plans])
    for each in plans:
        _explain(call, each.look)
        target = each.look.target
        state = f"{each.look.state}, would be created" if each.look.state == "missing" else each.look.state
        call.output.text(f"{target.package.name} ({target.database}): {state}")
        for step in each.steps:
            call.output.text(f"  {step.title}: {step.revision}")
            for required in step.requires:
                call.output.text(f"      requires {required.revision} of {required.package}: {required.state}")
            for operation in step.operations:
                call.output.text(f"      {operation}")
            if step.error:
                call.output.text(f"      {step.error}")
            if call.arguments.sql and step.sql:
                call.output.text()
                call.output.text(indent(step.sql, "      "))
                call.output.text()
    return 1 if any(each.look.state in ("unreachable", "mislabelled") for each in plans) else 0


def _plain_plan(plan: verbs.Plan) -> dict[str, Any]:
    target = plan.look.target
    return {
        "package": target.package.name,
        "database": target.database,
        "state": plan.look.state,
        "pending": [asdict(step) for step in plan.steps],
    }


def _check(call: Call) -> int:
    findings = verbs.check(call.workspace, call.arguments.package, call.options)
    if call.output.as_json:
        call.output.document([asdict(each) for each in findings])
    elif findings:
        rows = [(each.package, each.kind, ": ".join(filter(None, (each.subject, each.text)))) for each in findings]
        call.output.table(("package", "kind", "finding"), rows)
    else:
        call.output.text("nothing found")
    return 3 if findings else 0


def _verify(call: Call) -> int:
    given = call.arguments.package
    return call.output.finish(verbs.verify(call.workspace, given, call.options, call.output.report))


def _configure_environment(parser: ArgumentParser) -> None:
    package(parser)
    parser.add_argument(
        "--write", action="store_true", help="add what is in force to the .env files that lack it; changes no value"
    )


def _environment(call: Call) -> int:
    if call.arguments.write:
        written = verbs.write_environment(call.workspace, call.arguments.package)
        if call.output.as_json:
            call.output.document(
                [
                    {"path": str(path), "written": list(names), "renewed": list(renewed), "kept": list(kept)}
                    for path, names, _, renewed, kept in map(astuple, written)
                ]
            )
        for each in written:
            what = (
                f"{'made, with' if each.made else 'added'} {', '.join(each.names)}" if each.names else "lacks nothing"
            )
            if each.renewed:
                what += f"; a new password in {', '.join(each.renewed)}"
            path = each.path.relative_to(call.workspace.root)
            call.output.text(f"{path}: {what}")
            if each.kept:
                call.output.error(
                    f"warning: {path} keeps {', '.join(each.kept)}, which another user signs in with than the role "
                    "that grant has made: remove the line, and write again"
                )
        return 0
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
    from atriz_database import graph

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
    "status": Verb(
        "Show where each database stands: current, heads, pending, edited since applied.",
        _status,
        _configure_status,
        "examples:\n  atriz status\n  atriz status --json\n  atriz status --exit-code     3 unless all are up to date",
    ),
    "plan": Verb(
        "Show what migrate would do, revision by revision; takes no lock and changes nothing.",
        _plan,
        _configure_plan,
        "examples:\n  atriz plan\n  atriz plan mextrack --sql",
    ),
    "check": Verb(
        "Look for trouble: several heads, edits, drift between models and database, unsafe statements.",
        _check,
        package,
        "Exits with 3 if it finds something. A revision excuses a statement with unsafe = {rule: reason}.\n\n"
        "examples:\n  atriz check\n  atriz check pshop --json",
    ),
    "verify": Verb(
        "Take each revision up, down, and up again in a scratch database, and compare the catalogs.",
        _verify,
        package_and_only,
        "Exits with 3 if it finds something; no package's database is touched. A revision that cannot be undone says\n"
        'why, irreversible = "reason", and is not taken down.\n\n'
        "examples:\n  atriz verify\n  atriz verify pshop --only",
    ),
    "env": Verb(
        "Show every setting and where it comes from, secrets masked; or write what .env files lack.",
        _environment,
        _configure_environment,
        "With the embedded server --write adds neither a URL nor PG*, so that it stays in force.\n\n"
        "examples:\n  atriz env\n  atriz env mextrack --json\n  atriz env --write",
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
