"""Start the commands of one measured run, wait for them, and say what they took.

A program of its own, run as ``python -I -S launch.py`` and as small as Python can be: on Linux a child's peak memory
begins with what its parent held when it was started, so a parent with psycopg loaded would hide every small child.

It reads one JSON document from standard input and writes one to standard output; :mod:`benchmarks.measure` has both.
"""

import json
import os
import sys
import time

_SAMPLE_SECONDS = 0.005
_BYTES = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    """Run the stages one after the other, the commands of a stage side by side."""
    given = json.load(sys.stdin)
    biggest, tree, processor, statuses = 0, 0, 0.0, []
    since = time.perf_counter()
    for stage in given["stages"]:
        running = {_start(command, given["output"]) for command in stage}
        while running:
            pid, status, usage = os.wait4(-1, os.WNOHANG if given["sampling"] else 0)
            if pid == 0:
                tree = max(tree, sum(map(_proportional_size, _descendants(running))))
                time.sleep(_SAMPLE_SECONDS)
                continue
            running.discard(pid)
            statuses.append(os.waitstatus_to_exitcode(status))
            processor += usage.ru_utime + usage.ru_stime
            # Of the command, or of the biggest of the processes that it waited for.
            biggest = max(biggest, usage.ru_maxrss * _BYTES)
        if any(statuses):
            break
    seconds = time.perf_counter() - since
    status = next((status for status in statuses if status), 0)
    took = {"seconds": seconds, "processor": processor, "biggest": biggest, "tree": tree or None, "status": status}
    json.dump(took, sys.stdout)


def _start(command: dict[str, object], output: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(str(command["folder"]))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # All of a run's output in one file, each line where it belongs in time.
        written = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        words: list[str] = command["words"]  # type: ignore[assignment]
        environ: dict[str, str] = command["environ"]  # type: ignore[assignment]
        os.execve(words[0], words, environ)
    except OSError as error:
        os.write(2, f"{command['words']}: {error}\n".encode())
    finally:
        os._exit(127)


def _descendants(roots: set[int]) -> set[int]:
    found, waiting = set(roots), list(roots)
    while waiting:
        pid = waiting.pop()
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    new = set(map(int, file.read().split())) - found
                found |= new
                waiting += new
        except OSError:
            continue  # It has ended, or there is no /proc here.
    return found


def _proportional_size(pid: int) -> int:
    """Return the bytes of memory that are a process's own, and its share of what it has in common with others."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
