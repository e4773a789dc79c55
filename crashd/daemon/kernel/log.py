"""The log from a kernel's dump itself, read by a sealed worker, if no log file was saved."""

import math
from dataclasses import dataclass

from crashd.analysisresult import parse_log_report
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.domain.kernellog.printkring import KernelLog
from crashd.domain.text import printable
from crashd.edge.sandbox.start import ask_worker, run_worker
from crashd.errors import FormatError, reason_of


@dataclass(frozen=True, slots=True)
class LogFailure:
    """Why a dump's log could not be read."""

    reason: str
    """One printable line."""


def read_log(dump_fd: int, options: AnalysisOptions) -> KernelLog | LogFailure:
    """Read the log from the dump at a descriptor, which stays the caller's. Blocks for
    `options.timeout_seconds` at most; call it in a worker process or a thread.

    The worker can do anything that the descriptor's mode allows, so open it read-only. A hostile
    dump cannot make this function raise.
    """
    seconds = options.timeout_seconds
    request = {
        "task": "kernel log",
        "cpu_seconds": max(1, math.ceil(seconds)),
        "memory_bytes": options.memory_bytes,
    }
    if options.worker_socket is None:
        result = run_worker(request, dump_fd, seconds)
    else:
        result = ask_worker(request, dump_fd, seconds, options.worker_socket)
    if result.failure is not None:
        return LogFailure(printable(result.failure))
    try:
        return parse_log_report(result.output)
    except FormatError as e:
        return LogFailure(printable(reason_of(e)))
