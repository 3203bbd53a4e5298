"""The verb that tries each revision before anybody depends on it: verify."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from atriz_database import fleet
from atriz_database.errors import AtrizError, VerificationError
from atriz_database.fleet import Act, Outcome, Report
from atriz_database.revisions import Revisions, check_syntax
from atriz_database.run import Options, ignore, locate, read
from atriz_database.settings import Target
from atriz_database.workspace import Workspace


def verify(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Take every revision up, down, and up again in scratch databases, and compare the catalogs after each step.

    The packages' own databases are not touched, and need not be there. All packages go side by side: none of their
    revisions may need another's database. A finding is an act of its own, of kind ``warning``; the outcome of a package
    with findings has status 3. A revision that says why it cannot be undone is not taken down, and its act says so.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    targets = locate(workspace, workspace.select(name, dependencies=not options.only), report)
    histories: dict[str, Revisions] = {}
    failed: dict[str, AtrizError] = {}
    for target in targets:
        try:
            files = read(target.package)
            files.single_head()
            for revision in files.by_id.values():
                check_syntax(revision.path)
            histories[target.package.name] = files
        except AtrizError as error:
            failed[target.package.name] = error
    # Imported here, before the workers fork, and so once for all of them.
    from atriz_database import migrations as _  # noqa: F401

    return fleet.run(targets, fleet.whole(partial(_verify, options, histories)), report, failed=failed, ordered=False)


def _verify(options: Options, histories: Mapping[str, Revisions], target: Target, report: Report) -> None:
    from atriz_database import roundtrip

    name, database = target.package.name, target.database
    total = len(histories[name].by_id)
    tried = bad = 0

    def tell(verified: roundtrip.Verified) -> None:
        nonlocal tried, bad
        tried += 1
        title = verified.revision.title
        for finding in verified.findings:
            report(Act(name, database, "found", title, finding, kind="warning"))
        if verified.findings:
            bad += 1
        else:
            detail = f"not taken down: {verified.irreversible}" if verified.irreversible else ""
            report(Act(name, database, "verified", title, detail, verified.seconds))
        report(Act(name, database, f"{tried} of {total} revisions", kind="progress"))

    report(Act(name, database, f"0 of {total} revisions", kind="progress"))
    unreached = roundtrip.verify(target, histories[name], tell, wait=options.wait)
    if bad:
        above = f"; {unreached} above the last of them could not be tried" if unreached else ""
        raise VerificationError(f"{bad} of {total} revisions did not go up, down and up again without a trace{above}.")
    if not total:
        report(Act(name, database, "up to date", detail="it has no revisions"))
