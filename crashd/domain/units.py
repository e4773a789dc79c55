"""Parses and formats sizes and durations.

As in systemd, and unlike SI, the suffixes of sizes are powers of 1024: `64K`, `64KB`, `64kB` and
`64KiB` are all 65536 bytes. Durations have the units of systemd.time(7), and their parts add up:
`1h30min`.
"""

from __future__ import annotations

from crashd.errors import UsageError

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from typing import Final

SIZE_MAX: Final = (1 << 63) - 1
"""Bytes: the largest off_t."""

DURATION_MAX_NS: Final = (1 << 63) - 1
"""About 292 years."""

_SIZE_LETTERS = "KMGTPE"
# Compiled when first used, and re is loaded only then: a listing only formats sizes.
_SIZE = r"(\d{1,19})(?:\.(\d{1,9}))?\s?(?:([KMGTPE])(?:i?B)?|B)?"
_PERCENT = r"(\d{1,3})(?:\.(\d{1,3}))?\s?%"
_PERCENT_UNITS = 100_000  # 100 % in thousandths of a percent

_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000
_MIN, _H, _D = 60 * _S, 3600 * _S, 86400 * _S
_UNITS: Final = {
    **dict.fromkeys(("ns", "nsec"), 1),
    **dict.fromkeys(("us", "usec", "µs", "μs"), _US),
    **dict.fromkeys(("ms", "msec"), _MS),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), _S),
    **dict.fromkeys(("m", "min", "minute", "minutes"), _MIN),
    **dict.fromkeys(("h", "hr", "hour", "hours"), _H),
    **dict.fromkeys(("d", "day", "days"), _D),
    **dict.fromkeys(("w", "week", "weeks"), 7 * _D),
    **dict.fromkeys(("M", "month", "months"), 2_629_800 * _S),  # 30.4375 days
    **dict.fromkeys(("y", "year", "years"), 31_557_600 * _S),  # 365.25 days
}
_SPAN = r"(\d{1,19})(?:\.(\d{1,9}))?\s*([a-zA-Zµμ]*)\s*"
_TEXT_MAX = 100


class Amount:
    """A number of bytes, or a share of a total not yet known; exactly one of the two is set.

    Not a dataclass, because crashctl loads this at each call, and dataclasses take as long as all
    else.
    """

    __slots__ = ("size_bytes", "thousandths")

    def __init__(self, size_bytes: int | None = None, thousandths: int | None = None) -> None:
        self.size_bytes = size_bytes
        self.thousandths = thousandths
        """Thousandths of a percent: 12.5 % is 12500."""

    def __eq__(self, other: object) -> bool:
        mine = (self.size_bytes, self.thousandths)
        return isinstance(other, Amount) and mine == (other.size_bytes, other.thousandths)

    def __hash__(self) -> int:
        return hash((self.size_bytes, self.thousandths))

    def __repr__(self) -> str:
        return f"Amount({self.size_bytes!r}, {self.thousandths!r})"

    def of(self, total_bytes: int) -> int:
        """Return the number of bytes, rounded down, for a total of `total_bytes`."""
        if self.thousandths is not None:
            return total_bytes * self.thousandths // _PERCENT_UNITS
        return self.size_bytes or 0

    def __str__(self) -> str:
        """Format it for `parse_size`."""
        if self.thousandths is None:
            return str(self.size_bytes)
        whole, rest = divmod(self.thousandths, 1000)
        return f"{whole}.{rest:03}".rstrip("0").rstrip(".") + "%"


def parse_size(value: str | int) -> Amount:
    """Parse `64M`, `1.5GiB`, `512` (bytes) or `10%`.

    Raises:
        UsageError: it is neither a size nor a share, or is below 0, above SIZE_MAX or above 100 %.
    """
    if isinstance(value, str) and value.rstrip().endswith("%"):
        import re

        match = re.fullmatch(_PERCENT, value.strip(), re.ASCII)
        if match:
            thousandths = int(match[1]) * 1000 + _scaled(match[2], 1000)
            if thousandths <= _PERCENT_UNITS:
                return Amount(thousandths=thousandths)
        raise UsageError(f"{_cut(value)} is not a share between 0% and 100%")
    return Amount(size_bytes=parse_bytes(value))


def parse_bytes(value: str | int) -> int:
    """Parse a size in bytes: `64M`, `1.5GiB`, `512`; fractions of a byte are rounded down.

    Raises:
        UsageError: it is not a size, or is below 0 or above SIZE_MAX.
    """
    size = -1
    if isinstance(value, str):
        import re

        match = re.fullmatch(_SIZE, value.strip(), re.ASCII | re.IGNORECASE)
        if match and (match[3] or not match[2]):  # no fractions of a byte
            factor = 1024 ** (_SIZE_LETTERS.index(match[3].upper()) + 1) if match[3] else 1
            size = int(match[1]) * factor + _scaled(match[2], factor)
    elif not isinstance(value, bool):
        size = value
    if not 0 <= size <= SIZE_MAX:
        raise UsageError(f'{_cut(value)} is not a size such as "64M" or "1.5GiB"')
    return size


def parse_duration(value: str | int) -> int:
    """Parse `5min`, `300s`, `1h30min`, `2 weeks` or a number of seconds into nanoseconds.

    A number without a unit means seconds, and must stand alone. A month is 30.4375 days, a year
    365.25.

    Raises:
        UsageError: it is not a duration, or is below 0 or above DURATION_MAX_NS.
    """
    duration_ns = -1
    if isinstance(value, str):
        duration_ns = _sum_spans(value.strip())
    elif not isinstance(value, bool):
        duration_ns = value * _S
    if not 0 <= duration_ns <= DURATION_MAX_NS:
        raise UsageError(f'{_cut(value)} is not a duration such as "300s" or "1h30min"')
    return duration_ns


def format_size(size_bytes: int) -> str:
    """Format a size, rounded up, as `ls -h` does: `512`, `1.2M`, `12M`, `1023K`."""
    unit, scaled = 1, size_bytes
    for letter in ("", *_SIZE_LETTERS):
        tenths = -(-size_bytes * 10 // unit)
        scaled = -(-size_bytes // unit)
        if scaled < 1024 or letter == _SIZE_LETTERS[-1]:
            break
        unit *= 1024
    if letter and tenths < 100:
        return f"{tenths // 10}.{tenths % 10}{letter}"
    return f"{scaled}{letter}"


def format_duration(duration_ns: int) -> str:
    """Format a duration in its two largest units (`1h 30min`), or in one below a minute (`2.5s`).

    The result is rounded down; `parse_duration` parses it.
    """
    if duration_ns < _MIN:
        for unit, name in ((_S, "s"), (_MS, "ms"), (_US, "us")):
            if duration_ns >= unit:
                whole, rest = divmod(duration_ns, unit)
                fraction = f"{rest * 1000 // unit:03}"[: 3 - len(str(whole))].rstrip("0")
                return f"{whole}.{fraction}{name}" if fraction else f"{whole}{name}"
        return f"{duration_ns}ns" if duration_ns else "0s"
    names = ((_D, "d"), (_H, "h"), (_MIN, "min"), (_S, "s"))
    first = next(i for i, (unit, _) in enumerate(names) if duration_ns >= unit)
    words = []
    for unit, name in names[first : first + 2]:
        count, duration_ns = divmod(duration_ns, unit)
        if count:
            words.append(f"{count}{name}")
    return " ".join(words)


def _sum_spans(text: str) -> int:
    """Return the sum of the spans of a duration; -1 if `text` is not a duration."""
    total, position = 0, 0
    import re

    span = re.compile(_SPAN, re.ASCII)
    while match := span.match(text, position):
        whole, fraction, name = match.groups()
        alone = match.span() == (0, len(text))
        if name not in _UNITS or not (name or alone):
            return -1
        total += int(whole) * _UNITS[name] + _scaled(fraction, _UNITS[name])
        position = match.end()
    return total if text and position == len(text) else -1


def _scaled(fraction: str | None, factor: int) -> int:
    """Return `factor` times the decimal places `fraction`, rounded down."""
    return int(fraction) * factor // 10 ** len(fraction) if fraction else 0


def _cut(value: str | int) -> str:
    if isinstance(value, str):
        return repr(value[:_TEXT_MAX])
    return str(value) if abs(value) <= SIZE_MAX else "a huge number"
