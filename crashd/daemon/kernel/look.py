"""One look into a dump's directory: its head, its end, its log, and what they show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel.dumpfiles import opened_files
from crashd.daemon.kernel.log import LogFailure, read_log
from crashd.daemon.kernel.unpack import NotJudged, unpack
from crashd.domain.kdump.compressed import find_wrapper, unwrap
from crashd.domain.kdump.directory import DumpDirectory, readme_is_unfinished
from crashd.domain.kdump.record import Look
from crashd.domain.kdump.troubles import find_troubles
from crashd.domain.kdump.vmcore import (
    HEAD_SIZE,
    TAIL_SIZE,
    Completeness,
    DumpVerdict,
    VmcoreHead,
    judge,
)
from crashd.errors import FormatError, reason_of
from crashd.store.corefile import unzstd
from crashd.store.kerneldumps import DumpRoot, OpenDump, Seen

if TYPE_CHECKING:
    from crashd.domain.kernellog.analyse import LogAnalysis

LOG_MAX = 2 << 20
"""Bytes that are read from a log's end; a kernel's own buffer is seldom larger."""
_PARTS_MAX = 32
_README_MAX = 4096


def is_unfinished(root: DumpRoot, seen: Seen, directory: DumpDirectory) -> bool:
    """Return whether the maker of the dump is still writing, or died while writing.

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
    worker: AnalysisOptions | None = None,
    scratch: Path = Path("/var/tmp"),
) -> Look:
    """Read what a trusted directory holds; while it is `growing`, only its log.

    If there is no log and `analysis` is given, read the log from the dump; a compressed dump is
    unpacked for that on the file system of `scratch`. If `worker` is given, read a compressed dump
    to its end.

    Raises:
        OSError: the directory is gone, or cannot be read.

    """
    with root.open(seen) as opened:
        judging = _Judging(opened, worker)
        capture_log = b"" if growing else _read_log(opened, directory.capture_log)
        verdict, parts = (None, ()) if growing else judging.judge(directory)
        log, source, build_id = _read_log(opened, directory.log), "file", None
        if not log and analysis is not None and verdict is not None and verdict.head is not None:
            names = parts or (directory.dump or b"",)
            log, source, build_id = _log_of_dump(opened, names, analysis, scratch)
    return Look(
        root=os.fspath(root.path),
        directory=directory,
        inode=seen.inode,
        verdict=verdict,
        log=log,
        log_source=source,
        analysis=_analyse(log),
        growing=growing,
        parts=parts,
        build_id=build_id,
        try_again=judging.try_again,
        capture_troubles=find_troubles(capture_log),
    )


class _Judging:
    """Judges the files of one dump."""

    def __init__(self, opened: OpenDump, worker: AnalysisOptions | None) -> None:
        self._opened = opened
        self._worker = worker
        self.try_again = False
        """Whether another look later may find out more."""

    def judge(self, directory: DumpDirectory) -> tuple[DumpVerdict | None, tuple[bytes, ...]]:
        """Judge a directory's dump; return the verdict, and the files of a split dump in order."""
        if directory.dump is None:
            return None, ()
        unfinished = directory.unfinished or (
            directory.readme is not None and _readme_says_so(self._opened, directory.readme)
        )
        verdict = self._judge_file(directory.dump, unfinished)
        if verdict.head is None or verdict.head.split is None:
            return verdict, ()
        files = {directory.dump: verdict}
        for name in directory.parts[:_PARTS_MAX]:
            if name not in files:
                files[name] = self._judge_file(name, unfinished)
        return judge_parts(verdict, files), order_parts(files)

    def _judge_file(self, name: bytes, unfinished: bool) -> DumpVerdict:
        try:
            head, tail, size = self._opened.read_ends(name, HEAD_SIZE, TAIL_SIZE)
            with self._opened.reader(name) as read:
                verdict = judge(head, size, tail, unzstd, unfinished=unfinished, read=read)
            if verdict.sure or find_wrapper(head) is None or self._worker is None:
                return verdict
            fd = self._opened.open_file(name)
            try:
                found = unpack(fd, self._worker)
            finally:
                os.close(fd)
        except FormatError as e:
            return DumpVerdict(Completeness.BOGUS, reason_of(e))
        if isinstance(found, NotJudged):
            self.try_again = self.try_again or found.try_again
            return judge(head, size, tail, unzstd, unfinished=unfinished, unpacked=found.reason)
        return judge(head, size, tail, unzstd, unfinished=unfinished, unpacked=found)


def order_parts(files: Mapping[bytes, DumpVerdict]) -> tuple[bytes, ...]:
    """Return the names of a split dump's parts in the order of their page frames."""
    found = [
        (file.head.split, name)
        for name, file in files.items()
        if file.head is not None and file.head.split is not None
    ]
    return tuple(name for _, name in sorted(found))


def judge_parts(newest: DumpVerdict, files: Mapping[bytes, DumpVerdict]) -> DumpVerdict:
    """Judge a dump in several files: it is complete if every part is complete and present.

    A file that is a dump of its own (makedumpfile --reassemble made it from the parts) is not a
    part.
    """
    parts = [f for f in files.values() if f.head is None or f.head.split is not None]
    for part in parts:
        if part.completeness in (Completeness.INCOMPLETE, Completeness.BOGUS):
            return part
    missing = find_missing_part([part.head for part in parts if part.head is not None])
    if missing:
        return replace(newest, completeness=Completeness.INCOMPLETE, reason=missing, sure=True)
    return next((part for part in parts if not part.sure), newest)


def find_missing_part(heads: Sequence[VmcoreHead]) -> str:
    """Return a line that names a page frame missing from all parts of a split dump, or ""."""
    at = 0
    for start, end in sorted(head.split for head in heads if head.split is not None):
        if start > at:
            break
        at = max(at, end)
    frames = max((head.page_frames for head in heads), default=0)
    return f"a part is missing: no file has the page frame {at} of {frames}" if at < frames else ""


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
    opened: OpenDump, names: Sequence[bytes], options: AnalysisOptions, scratch: Path
) -> tuple[bytes, str, str | None]:
    """Read the log from a dump's files. Return the log, its source, and the build-id that the
    dump's memory has; if that fails, an empty log, the reason, and None.
    """
    try:
        with opened_files(opened, names, options, scratch) as fds:
            found = read_log(fds, options)
    except FormatError as e:
        return b"", reason_of(e), None
    if isinstance(found, LogFailure):
        return b"", found.reason, None
    return found.text, "dump", found.build_id


def _analyse(log: bytes) -> LogAnalysis | None:
    from crashd.domain.kernellog.analyse import analyse  # see live.py

    return analyse(log) if log else None
