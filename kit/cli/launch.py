"""One command in several processes, as `torchrun` starts them, with the exit code of the command.

`python -m torch.distributed.run` exits with 1 whatever the exit code of its processes is. This one
keeps it, so that "stopped in time" (3) can be told from an error.
"""

from __future__ import annotations

import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def main(processes: str, *words: str) -> int:
    """Run `kit WORDS` in so many processes; return 0, or the highest of their exit codes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: the processes share the cores
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(processes),
        run_id="kit",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "kit", *words)
    except ChildFailedError as error:
        # The others were ended by a signal, which is a negative code.
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
