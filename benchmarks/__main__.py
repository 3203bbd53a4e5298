"""Run the benchmarks: ``python -m benchmarks [TOPIC …] [OPTIONS]``, or ``nox -s bench -- …``."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from benchmarks import cluster, data, migrate, report, signin, testing
from benchmarks.case import Case, Options

# A topic is a module with a generator `cases`.
_TOPICS = {"migrate": migrate.cases, "data": data.cases, "testing": testing.cases, "signin": signin.cases}


def main(words: list[str]) -> int:
    """Run the topics and print what was measured; 1 where `atriz` itself failed in a case, else 0."""
    parser = _parser()
    given = parser.parse_args(words)
    for topic in given.topics:
        if topic not in _TOPICS:
            parser.error(f"there is no topic {topic!r}; the topics are: {', '.join(_TOPICS)}")
    # Whoever ends this gets what Ctrl-C gets: what was started is ended, the server stopped, its folder removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = Options(
        1 if given.quick else given.rounds, given.quick, given.peers, given.only, report.progress, given.big
    )
    measured: list[Case] = []
    try:
        with cluster.running(given.commit_ms) as server:
            facts = report.machine(server)
            for topic in given.topics or _TOPICS:
                measured += _TOPICS[topic](server, options)
    except KeyboardInterrupt:
        print("\nbenchmarks: interrupted", file=sys.stderr)
        return 1
    report.progress("")
    if given.json:
        print(json.dumps(report.document(facts, measured), indent=1))
    else:
        report.show(facts, measured, options.rounds)
    own = (entry for case in measured for entry in case.entries if entry.contender.startswith("atriz"))
    return int(any(entry.failure.startswith("failed") for entry in own))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description="Measure atriz beside floors and peers.")
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(_TOPICS))
    parser.add_argument(
        "--rounds", type=int, default=9, help="rounds that are timed, one after a warm-up (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one round with five revisions, to see that all works")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave the peers out")
    parser.add_argument("--only", default="", metavar="WORD", help="the cases with this in their name alone")
    parser.add_argument(
        "--commit-ms", type=float, default=0.0, metavar="MS", help="have each commit wait as for a slower disk's flush"
    )
    parser.add_argument("--big", action="store_true", help="signin with a million users as well: some minutes, 10 GB")
    parser.add_argument("--json", action="store_true", help="print every sample as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
