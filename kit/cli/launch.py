"""One command in several processes, as `torchrun` starts them, with the exit code of the command.

    python -m kit.cli.launch 4 run DATA --run RUN
    python -m kit.cli.launch --nodes 2 --meet HOST:PORT 4 run DATA --run RUN      # on both machines

`python -m torch.distributed.run` exits with 1 whatever the exit code of its processes is. This one
keeps it, so that "stopped in time" (3) can be told from an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kit.processes.ending import ENDING, describe_death, note_ending, read_ending


def main(words: Sequence[str] | None = None) -> int:
    """Run a command of kit in several processes; return 0, or the exit code of the first failure.

    What that was they note in the file of `KIT_ENDING`, by default one of this call's own.
    """
    options = _parse(words)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: the processes share the cores
    if ENDING in os.environ:
        return _launch(options, os.environ[ENDING])
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ENDING] = f"{folder}/ending.json"
        try:
            return _launch(options, os.environ[ENDING])
        finally:
            del os.environ[ENDING]


def _launch(options: argparse.Namespace, note: str) -> int:
    config = LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=options.processes,
        run_id="kit",
        rdzv_backend="c10d",
        rdzv_endpoint=options.meet,
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "kit", *options.command)
        return 0
    except ChildFailedError as error:
        ending = read_ending(note)
        if ending:
            return ending.code
        # A negative code is a signal; the others are ended by one as soon as the first has failed.
        codes = [failure.exitcode for failure in error.failures.values()]
        if max(codes) > 0:
            return max(codes)
        ending = describe_death(options.command[0], -codes[0])
        note_ending(ending)
        print(f"kit: {ending.reason}", file=sys.stderr)
        return ending.code


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kit.cli.launch", description="Run a command of kit in several processes."
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines, each with this command")
    parser.add_argument(
        "--meet",
        metavar="HOST:PORT",
        default="localhost:0",
        help="a free port of one of the machines, the same on all of them",
    )
    parser.add_argument("processes", type=int, help="processes on this machine, one for each GPU")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what would follow `kit`")
    options = parser.parse_args(words)
    if options.nodes > 1 and options.meet == "localhost:0":
        parser.error("several nodes need --meet HOST:PORT, where they find one another")
    if not options.command:
        parser.error("name the command of kit that the processes run")
    return options


if __name__ == "__main__":
    sys.exit(main())
