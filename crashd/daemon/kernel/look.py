"""One look into a dump's directory: its head, its end, its log, and what they tell."""

import os
from collections.abc import Sequence
from dataclasses import replace

from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel.log import LogFailure, read_log
from crashd.domain.kdump.compressed import find_wrapper, unwrap
from crashd.domain.kdump.directory import DumpDirectory, readme_is_unfinished
from crashd.domain.kdump.record import Look
from crashd.domain.kdump.vmcore import (
    HEAD_SIZE,
    TAIL_SIZE,
    Completeness,
    Verdict,
    VmcoreHead,
    judge,
)
from crashd.domain.kernellog.analyse import LogAnalysis, analyse
from crashd.errors import FormatError, reason_of
from crashd.store.corefile import unzstd
from crashd.store.kerneldumps import DumpRoot, OpenDump, Seen

LOG_MAX = 2 << 20
"""Bytes of a log's end that are read; a kernel's own buffer is seldom larger."""
_PARTS_MAX = 32
_README_MAX = 4096


def is_unfinished(root: DumpRoot, seen: Seen, directory: DumpDirectory) -> bool:
    """Tell whether the maker says that it is still writing, or died while it was.

    Raises:
        OSError: the directory is gone.

    """
    if directory.unfinished or directory.log_unfinished:
        return True
    if directory.readme is None:
        return False
    with root.open(seen) as opened:
        return _readme_says_so(opened, directory.readme)


def _readme_says_so(opened: OpenDump, name: bytes) -> bool:
    try:
        return readme_is_unfinished(opened.read_ends(name, _README_MAX, 0)[0])
    except FormatError:
        return False


def look_into(
    root: DumpRoot,
    seen: Seen,
    directory: DumpDirectory,
    *,
    growing: bool,
    analysis: AnalysisOptions | None = None,
) -> Look:
    """Read what a trusted directory holds; while it is `growing`, no more than its log. Where there
    is no log, and `analysis` says how, it is taken out of the dump.

    Raises:
        OSError: the directory is gone, or cannot be read.

    """
    with root.open(seen) as opened:
        verdict = None if growing else _judge(opened, directory)
        log, source, build_id = _read_log(opened, directory.log), "file", None
        if not log and analysis is not None and verdict is not None and verdict.head is not None:
            log, source, build_id = _log_of_dump(opened, directory, analysis)
    return Look(
        root=os.fspath(root.path),
        directory=directory,
        inode=seen.inode,
        verdict=verdict,
        log=log,
        log_source=source,
        analysis=_analyse(log),
        growing=growing,
        build_id=build_id,
    )


def _judge(opened: OpenDump, directory: DumpDirectory) -> Verdict | None:
    if directory.dump is None:
        return None
    unfinished = directory.unfinished or (
        directory.readme is not None and _readme_says_so(opened, directory.readme)
    )
    verdict = _judge_file(opened, directory.dump, unfinished)
    if verdict.head is None or verdict.head.split is None:
        return verdict
    # a dump in several files is whole when each of them is
    parts = [_judge_file(opened, name, unfinished) for name in directory.parts[:_PARTS_MAX]]
    for part in parts:
        if part.completeness is not Completeness.COMPLETE:
            return part
    missing = find_missing_part([part.head for part in parts if part.head is not None])
    if missing:
        return replace(verdict, completeness=Completeness.INCOMPLETE, reason=missing, sure=True)
    return next((part for part in parts if not part.sure), verdict)


def find_missing_part(heads: Sequence[VmcoreHead]) -> str:
    """Say which page frames are in no part of a split dump; "" where all are."""
    at = 0
    for start, end in sorted(head.split for head in heads if head.split is not None):
        if start > at:
            break
        at = max(at, end)
    frames = max((head.page_frames for head in heads), default=0)
    return f"a part is missing: no file has the page frame {at} of {frames}" if at < frames else ""


def _judge_file(opened: OpenDump, name: bytes, unfinished: bool) -> Verdict:
    try:
        head, tail, size = opened.read_ends(name, HEAD_SIZE, TAIL_SIZE)
        with opened.reader(name) as read:
            return judge(head, size, tail, unzstd, unfinished=unfinished, read=read)
    except FormatError as e:
        return Verdict(Completeness.BOGUS, reason_of(e))


def _read_log(opened: OpenDump, name: bytes | None) -> bytes:
    if name is None:
        return b""
    try:
        head, tail, size = opened.read_ends(name, LOG_MAX, LOG_MAX)
        wrapper = find_wrapper(head)
        if wrapper is not None:
            return unwrap(head, wrapper, 4 * LOG_MAX, unzstd).data[-LOG_MAX:]
    except FormatError:
        return b""
    if size <= LOG_MAX:
        return head
    return tail.partition(b"\n")[2] or tail


def _log_of_dump(
    opened: OpenDump, directory: DumpDirectory, options: AnalysisOptions
) -> tuple[bytes, str, str | None]:
    """Take the log out of the dump, and the build-id that its memory has; nothing, and why, where
    that cannot be.
    """
    if directory.dump is None:
        return b"", "file", None
    try:
        fd = opened.open_file(directory.dump)
    except FormatError as e:
        return b"", reason_of(e), None
    try:
        found = read_log(fd, options)
    finally:
        os.close(fd)
    if isinstance(found, LogFailure):
        return b"", found.reason, None
    return found.text, "dump", found.build_id


def _analyse(log: bytes) -> LogAnalysis | None:
    return analyse(log) if log else None
