"""A compressed kernel dump, read to its end by a sealed worker to see whether it is complete, or to
unpack it into a file without a name, because libraries read pages at any place.
"""

import os
from dataclasses import dataclass
from typing import Final

from crashd.analysisresult import parse_dump_report
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.domain.kdump.stream import Unpacked
from crashd.domain.text import printable
from crashd.edge.sandbox.start import ask_worker, run_worker
from crashd.errors import FormatError, reason_of

MEMORY_BYTES: Final = 26 << 20
"""Of the worker, beyond its own size (about 36 MiB): less than 64 MiB in all."""
CPU_SECONDS_MIN: Final = 30
CPU_SECONDS_MAX: Final = 600
BYTES_PER_SECOND: Final = 2 << 20
"""Of the compressed file; bzip2, the slowest compressor, is three times as fast."""
_WALL_PER_CPU = 3  # the worker runs only when nothing else wants the processor


@dataclass(frozen=True, slots=True)
class NotJudged:
    """Why a dump could not be read to its end."""

    reason: str
    """One printable line."""
    try_again: bool = False
    """Whether no worker was available, but one may be later."""


def unpack(
    fd: int, options: AnalysisOptions, target: int | None = None, room_bytes: int = 0
) -> Unpacked | NotJudged:
    """Read the compressed dump at a descriptor to its end, and write what is in it to `target`, an
    empty file, up to `room_bytes`; both stay the caller's. Blocks for three times CPU_SECONDS_MAX
    at most. A hostile dump cannot make it raise.
    """
    size = os.fstat(fd).st_size
    seconds = min(CPU_SECONDS_MAX, CPU_SECONDS_MIN + size // BYTES_PER_SECOND)
    request = {"task": "kernel dump", "cpu_seconds": seconds, "memory_bytes": MEMORY_BYTES}
    request["unpacked_max"] = room_bytes
    extra = () if target is None else (target,)
    timeout_seconds = float(_WALL_PER_CPU * seconds)
    if options.worker_socket is None:
        result = run_worker(request, fd, timeout_seconds, extra)
    else:
        result = ask_worker(request, fd, timeout_seconds, options.worker_socket, extra)
    if result.failure is not None:
        # A worker that used up its time or memory would do so again. One that could not begin, or
        # was refused because there are too many workers, may succeed later.
        used_up = result.seconds >= CPU_SECONDS_MIN / 2 or "memory" in result.failure
        return NotJudged(printable(result.failure), try_again=not used_up)
    try:
        return parse_dump_report(result.output)
    except FormatError as e:
        return NotJudged(printable(reason_of(e)))
