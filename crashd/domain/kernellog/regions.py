"""Finds the parts of a large log that may contain reports of the kernel. Pure.

A log may be years of a serial console. Parsing every line costs far more than reading it, and
nearly all lines have nothing to do with a crash. So a large log is searched for the words that
begin reports, and only the lines around them are parsed, as many as one report can have.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from crashd.domain.kernellog.printk import LOG_MAX, LogLine, parse_lines, parse_ranges

__all__ = ["parse_regions"]

WHOLE_MAX: Final = 2**20
"""A log of at most this many bytes is parsed as a whole."""
LINES_MAX: Final = 20_000
"""Lines parsed of a larger log; an eighth of them at its head."""
BEFORE: Final = 40
AFTER: Final = 1000
"""Lines around a mark; no report has more."""
FIRST: Final = 200
LAST: Final = 700
"""Lines at the ends of a log, which are always parsed."""

_HEAD_SHARE = 8
_CHUNK = 2**20
_OVERLAP = 64
_MARK = re.compile(
    rb"BUG|WARNING: |Unable to handle|Unhandled |Oops|INFO: |PANIC|Kernel (?:panic|bug|stack overf)"
    rb"|#\d{1,9}\]|SError|Bad mode|UBSAN|CFI f|LOCKUP|Insufficient stack|Hardware Error\]"
    rb"|Memory failure|NMI received|IOCK|PCI system error|VFS: (?:Busy|Close)"
    rb"|Linux version \d|_netdevice: w"
)


def parse_regions(log: bytes) -> list[LogLine]:
    """Parse the lines of a log that may belong to a report; `GAP` stands for omitted lines."""
    if len(log) <= WHOLE_MAX:
        return parse_lines(log)
    if len(log) <= LOG_MAX:
        return parse_ranges(log, _ranges(log, 0, len(log), LINES_MAX))
    head_end = LOG_MAX // _HEAD_SHARE
    tail = len(log) - (LOG_MAX - head_end)
    ranges = _ranges(log, 0, head_end, LINES_MAX // _HEAD_SHARE)
    ranges += _ranges(log, tail, len(log), LINES_MAX - LINES_MAX // _HEAD_SHARE)
    return parse_ranges(log, ranges)


def _ranges(log: bytes, start: int, end: int, lines_max: int) -> list[tuple[int, int]]:
    """Choose ranges of whole lines, from the end backwards, until `lines_max` are reached.

    The newest report matters most, so the end of the log is served first. A range that reaches the
    one after it is joined to it.
    """
    first_end, used = _forward(log, start, end, FIRST)
    begin, count = _backward(log, first_end, end, LAST)
    found = [(begin, end)]
    used += count
    for mark in _marks(log, first_end, begin):
        if used >= lines_max:
            break
        begin, upper = found[-1]
        after = begin
        if mark < begin:
            after, count = _forward(log, mark, begin, AFTER)
            used += count
        before, count = _backward(log, first_end, min(mark, begin), BEFORE)
        used += count
        if after >= begin:
            found[-1] = (min(before, begin), upper)
        else:
            found.append((before, after))
    return _merged([(start, first_end), *reversed(found)])


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that touch or overlap."""
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


def _marks(log: bytes, start: int, end: int) -> Iterator[int]:
    """Yield offsets where a report may begin, last first."""
    while end > start:
        begin = max(start, end - _CHUNK)
        chunk = log[begin : end + _OVERLAP]
        yield from reversed([begin + match.start() for match in _MARK.finditer(chunk)])
        end = begin


def _forward(log: bytes, position: int, end: int, count: int) -> tuple[int, int]:
    """Return the end of the next `count` lines, and how many lines there are up to it."""
    for n in range(count):
        found = log.find(b"\n", position, end)
        if found < 0:
            return end, n + 1
        position = found + 1
    return position, count


def _backward(log: bytes, start: int, position: int, count: int) -> tuple[int, int]:
    """Return the start of the `count` lines before, and how many lines there are back to it."""
    position -= 1
    for n in range(count):
        found = log.rfind(b"\n", start, position)
        if found < 0:
            return start, n + 1
        position = found
    return position + 1, count
