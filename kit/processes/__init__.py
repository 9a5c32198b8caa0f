"""Worker processes: how many, how they read ahead, and what becomes of them."""

from kit.processes.workers import (
    ScarcityError,
    WorkerError,
    blame_machine,
    choose_workers,
    count_cores,
    explain_scarcity,
    limit_threads,
    restart_once,
    shield_workers,
)

__all__ = [
    "ScarcityError",
    "WorkerError",
    "blame_machine",
    "choose_workers",
    "count_cores",
    "explain_scarcity",
    "limit_threads",
    "restart_once",
    "shield_workers",
]
