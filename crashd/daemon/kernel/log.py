"""The log from a kernel's dump itself, read by a sealed worker, if no log file was saved."""

import math
from collections.abc import Sequence
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


def read_log(dump_fds: Sequence[int], options: AnalysisOptions) -> KernelLog | LogFailure:
    """Read the log from a dump; the descriptors of its files stay the caller's. Blocks for
    `options.timeout_seconds` at most; call it in a worker process or a thread.

    The worker can do anything that the descriptors' mode allows, so open them read-only. A hostile
    dump cannot make this function raise.
    """
    seconds = options.timeout_seconds
    first, *others = dump_fds
    request = {
        "task": "kernel log",
        "parts": len(others),
        "cpu_seconds": max(1, math.ceil(seconds)),
        "memory_bytes": options.memory_bytes,
    }
    if options.worker_socket is None:
        result = run_worker(request, first, seconds, others)
    else:
        result = ask_worker(request, first, seconds, options.worker_socket, others)
    if result.failure is not None:
        return LogFailure(printable(result.failure))
    try:
        return parse_log_report(result.output)
    except FormatError as e:
        return LogFailure(printable(reason_of(e)))
