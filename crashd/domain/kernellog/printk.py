"""Parses lines of the kernel's log, in every form in which it is written. Pure.

    [   12.345678] text                               console, dmesg, makedumpfile --dump-dmesg
    [   12.345678][  T123] text                       with CONFIG_PRINTK_CALLER ([    C0]: a cpu)
    <4>[   12.345678] text                            dmesg -r, pstore
    kern  :warn  : [   12.345678] text                dmesg -x
    [Mon Nov 23 11:00:00 2026] text                   dmesg -T
    2026-11-23T11:00:00,123456+00:00 text             dmesg --time-format iso
    6,1234,5678,-;text                                /dev/kmsg, netconsole; then " KEY=value" lines
    Nov 23 11:00:00 host kernel: [   12.345678] text  syslog, journalctl -k (without the stamp)
    [   12.345678] host kernel: text                  journalctl -o short-monotonic
    host login: [   12.345678] text                   a serial console that others wrote on, too;
    their words[   12.345678] text                    their line may have no end

Lines that a program wrote (to /dev/kmsg or to syslog) are left out if the form shows that, because
only the kernel's own lines can be a report. All input may be hostile or torn. Work is linear in the
bytes, and of a large log only the head (the boot) and the tail (the crash) are parsed.

Source: Documentation/ABI/testing/dev-kmsg; kernel/printk/printk.c; dmesg(1); journalctl(1).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from crashd.domain.text import printable

__all__ = [
    "GAP",
    "GAP_LINES",
    "LINES_MAX",
    "LINE_MAX",
    "LOG_MAX",
    "LogLine",
    "count_lines",
    "is_boot",
    "is_gap",
    "parse_lines",
    "parse_ranges",
]

LOG_MAX: Final = 32 * 2**20
"""Bytes parsed of a log: an eighth at its head, the rest at its end."""

LINES_MAX: Final = 300_000
"""Lines parsed of a log, divided in the same way."""

LINE_MAX: Final = 8192
"""Bytes of one line; `Modules linked in:` is the longest that occurs."""

ROTATION_DROP_S: Final = 1.0
"""The clocks of CPUs differ by less than this."""

_HEAD_SHARE = 8
_CSI = re.compile(rb"\x1b\[[0-9;?]{0,32}[ -/]?[@-~]")
_STAMP = r"\[ {0,12}(?P<s>\d{1,12}\.\d{3,9})(?: {0,3}<[ \d.]{1,20}>)?\]"
_CALLER = r"(?: ?\[ {0,12}(?P<caller>[CT]\d{1,10})\])?"
_STAMPED = re.compile(rf"{_STAMP}{_CALLER} ?(?:[\w.-]{{1,64}} kernel: )?(?P<text>.*)")
_GLUED = re.compile(rf".{{1,200}}?\[ {{0,4}}(?P<s>\d{{1,12}}\.\d{{6}})\]{_CALLER} (?P<text>.*)")
_PROMPTED = re.compile(r"(?:login: |\*\* ?|[$#] )\[ {0,4}$")
_ANY_STAMP = re.compile(rb"^(?:<\d{1,4}>)?\[ {0,12}\d{1,12}\.\d{6}\]", re.MULTILINE)
_PROMPT = re.compile(r"[\w.-]{1,64} login: (?P<text>.+)")
_KMSG = re.compile(
    r"(?P<prio>\d{1,5}),(?P<seq>\d{1,20}),(?P<us>\d{1,20}),[-c+](?P<more>(?:,[^;]{0,200})?);"
    r"(?P<text>.*)"
)
_KMSG_CALLER = re.compile(r",caller=([CT]\d{1,10})")
_KMSG_KEY = re.compile(r" [A-Z][A-Z_]{0,63}=")
_SYSLOG = re.compile(
    r"(?:\w{2,5}\.? [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,9})?|(?P<iso>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)"
    r"(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?) [^\s]{1,255} (?P<tag>[^\s:\[]{1,64})(?:\[\d{1,10}\])?: ?"
    r"(?P<text>.*)"
)
_ISO = re.compile(
    r"(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d),\d{1,9}(?:Z|[+-]\d\d:?\d\d) (?P<text>.*)"
)
_CTIME = re.compile(
    r"\[\w{3} (?P<month>\w{3}) (?P<day>[ \d]\d) (?P<clock>\d\d:\d\d:\d\d) (?P<year>\d{4})\] ?"
    r"(?P<text>.*)"
)
_DECODED = re.compile(r"(?P<facility>[a-z0-9]{2,8}) {0,6}: ?(?P<level>[a-z]{3,6}) {0,6}: ?(?=\[)")
_PRIO = re.compile(r"<(\d{1,4})>")
_BANNER = re.compile(r"Linux version \d")
_LEVELS = {
    name: n
    for n, name in enumerate(("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"))
}
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


class LogLine(NamedTuple):
    """One line written by the kernel."""

    text: str
    """The message, as one line that is safe on a terminal; tabs become blanks."""
    time_s: float | None
    """Since boot; or since the epoch if the log has no other time (`dmesg -T`, ISO; then in whole
        seconds, and read as UTC)."""
    level: int | None
    caller: str | None
    """The task or CPU that wrote it: T123, C0."""
    seq: int | None
    offset: int
    """Offset in the log, in bytes."""


GAP: Final = LogLine("", None, None, None, None, 0)
"""Stands for omitted lines; no other line is empty."""
GAP_LINES: Final = 2000
"""The number of lines that a gap counts for."""


def parse_lines(log: bytes, *, lines_max: int = LINES_MAX) -> list[LogLine]:
    """Split a log into the kernel's lines, in the order of writing, without empty ones.

    The middle of a log with more than `LOG_MAX` bytes or `lines_max` lines is left out. Text of a
    ring buffer that has wrapped is put in order.
    """
    lines = parse_ranges(log, _choose_ranges(log, lines_max))
    return [line for line in lines if not is_gap(line)]


def parse_ranges(log: bytes, ranges: Iterable[tuple[int, int]]) -> list[LogLine]:
    """Split parts of a log into the kernel's lines, with `GAP` between parts not adjacent."""
    lines: list[LogLine] = []
    after_kmsg = False
    last = None
    ranges = list(ranges)
    may_glue = any(_ANY_STAMP.search(log, start, end) for start, end in ranges)
    for start, end in ranges:
        if last is not None and start > last:
            lines.append(GAP)
        last = end
        for offset, raw in _split(log, start, end):
            text = _clean(raw)
            if not text or (after_kmsg and _KMSG_KEY.match(text)):
                continue
            record = _KMSG.match(text) if text[0].isdigit() else None
            after_kmsg = record is not None
            line = (
                _parse_record(record, offset)
                if record is not None
                else _parse_line(text, offset, may_glue=may_glue)
            )
            if line is not None and line.text:
                lines.append(line)
    return _unrotate(lines)


def is_gap(line: LogLine) -> bool:
    """Return whether this stands for omitted lines."""
    return not line.text


def count_lines(lines: Sequence[LogLine]) -> int:
    """Count lines, including omitted ones."""
    return len(lines) + GAP_LINES * sum(map(is_gap, lines))


def is_boot(line: LogLine) -> bool:
    """Return whether a kernel's boot begins with this line."""
    return line.text.startswith("Linux version ") and _BANNER.match(line.text) is not None


def _choose_ranges(log: bytes, lines_max: int) -> list[tuple[int, int]]:
    """Choose the head and the tail of a log that is too large."""
    head_end, tail_start = len(log), len(log)
    head_max = lines_max // _HEAD_SHARE
    if len(log) > LOG_MAX:
        head_end = LOG_MAX // _HEAD_SHARE
        tail_start = len(log) - (LOG_MAX - head_end)
    elif log.count(b"\n") > lines_max:
        tail_start = head_end = _skip_lines(log, len(log), head_max)
    if head_end < len(log):
        head_end = _skip_lines(log, head_end, head_max)
        tail_start = _last_lines(log, tail_start, lines_max - head_max)
    return [(0, head_end), (tail_start, len(log))]


def _split(log: bytes, position: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each line of a part."""
    while position < end:
        stop = log.find(b"\n", position, end)
        stop = end if stop < 0 else stop
        yield position, log[position : min(stop, position + LINE_MAX)]
        position = stop + 1


def _skip_lines(log: bytes, end: int, count: int) -> int:
    """Find the end of the first `count` lines before `end`."""
    position = 0
    for _ in range(count):
        found = log.find(b"\n", position, end)
        if found < 0:
            return end
        position = found + 1
    return position


def _last_lines(log: bytes, start: int, count: int) -> int:
    """Find the start of the last `count` lines after `start`."""
    position = len(log) - log.endswith(b"\n")
    for _ in range(count):
        position = log.rfind(b"\n", start, position)
        if position < 0:
            return start
    return position + 1


def _clean(raw: bytes) -> str:
    """Return the text without terminal sequences, control characters and trailing blanks."""
    if b"\x1b" in raw:
        raw = _CSI.sub(b"", raw)
    raw = raw.replace(b"\t", b" ").lstrip(b"\0").rstrip(b"\0 \r")
    if b"\r" in raw:
        raw = raw.rpartition(b"\r")[2]  # what a terminal would show
    if raw.isascii():
        text = raw.decode("ascii")
        if text.isprintable():
            return text
    return printable(raw)[:LINE_MAX]


def _parse_record(record: re.Match[str], offset: int) -> LogLine | None:
    """Parse a record of /dev/kmsg; None if a program wrote it."""
    priority = int(record["prio"])
    if priority >> 3:
        return None
    caller = _KMSG_CALLER.search(record["more"])
    return LogLine(
        record["text"],
        int(record["us"]) / 1e6,
        priority & 7,
        caller[1] if caller is not None else None,
        int(record["seq"]),
        offset,
    )


def _parse_line(line: str, offset: int, *, may_glue: bool) -> LogLine | None:
    """Parse any other line; None if a program wrote it.

    Prefixes are removed from left to right: wall clock and syslog tag, `kern  :warn  :`, `<4>`,
    and at last the kernel's own stamp.
    """
    text = line
    time_s: float | None = None
    level: int | None = None
    if text[0] not in "[< ":
        wall = _ISO.match(text) or _SYSLOG.match(text)
        if wall is not None:
            named = wall.groupdict()
            if named.get("tag", "kernel") != "kernel":
                return None
            time_s = _iso_time(named["iso"]) if named["iso"] else None
            text = named["text"]
        elif (decoded := _DECODED.match(text)) is not None and decoded["level"] in _LEVELS:
            if decoded["facility"] != "kern":
                return None
            level = _LEVELS[decoded["level"]]
            text = text[decoded.end() :]
    if text.startswith("<") and (prio := _PRIO.match(text)) is not None:
        if int(prio[1]) >> 3:
            return None
        level = int(prio[1])
        text = text[prio.end() :]
    stamped = _find_stamp(text, bare=text is line, may_glue=may_glue)
    if stamped is not None:
        if stamped.re is _PROMPT:
            return LogLine(stamped["text"], time_s, level, None, None, offset)
        if "s" in stamped.re.groupindex:
            return LogLine(
                stamped["text"], float(stamped["s"]), level, stamped["caller"], None, offset
            )
        return LogLine(stamped["text"], _ctime(stamped), level, None, None, offset)
    return LogLine(text, time_s, level, None, None, offset)


def _find_stamp(text: str, *, bare: bool, may_glue: bool) -> re.Match[str] | None:
    """Find the stamp of a line.

    On a `bare` line, of a console that programs write to, too, the stamp may follow a program's
    output. But if no line at all begins with a stamp (not `may_glue`), this kernel writes no
    stamps, and one in the middle is text that it quotes.
    """
    stamped = (_STAMPED.match(text) or _CTIME.match(text)) if text.startswith("[") else None
    if stamped is not None or not bare:
        return stamped
    glued = _GLUED.match(text) if "[" in text else None
    if glued is not None and not (may_glue or _PROMPTED.search(text[: glued.start("s")])):
        glued = None
    return glued or (_PROMPT.match(text) if " login: " in text else None)


def _iso_time(iso: str) -> float | None:
    try:
        return datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _ctime(match: re.Match[str]) -> float | None:
    try:
        hours, minutes, seconds = (int(part) for part in match["clock"].split(":"))
        month = _MONTHS.index(match["month"]) // 3 + 1
        moment = datetime(
            int(match["year"]), month, int(match["day"]), hours, minutes, seconds, tzinfo=UTC
        )
    except ValueError:
        return None
    return moment.timestamp()


def _unrotate(lines: list[LogLine]) -> list[LogLine]:
    """Put the older part of a wrapped ring buffer first.

    Such a text is cut where the buffer wraps: time falls back once, and the part after it ends
    before the first part begins. A second boot in the log falls back too, but starts with a banner,
    which a wrapped buffer has lost.
    """
    fall: int | None = None
    last: float | None = None
    for at, line in enumerate(lines):
        if line.time_s is None:
            continue
        if last is not None and line.time_s < last - ROTATION_DROP_S:
            if fall is not None:
                return lines
            fall = at
        last = line.time_s
    if fall is None or last is None:
        return lines
    first = next(line.time_s for line in lines if line.time_s is not None)
    if last > first + ROTATION_DROP_S or any(is_boot(line) for line in lines[fall:]):
        return lines
    return lines[fall:] + lines[:fall]
