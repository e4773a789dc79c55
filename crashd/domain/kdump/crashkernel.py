"""The `crashkernel=` parameter of /proc/cmdline: how much memory the capture kernel should get.

    crashkernel=SIZE[@OFFSET]
    crashkernel=START-[END]:SIZE[,START-[END]:SIZE…][@OFFSET]
    crashkernel=SIZE,high   crashkernel=SIZE,low   crashkernel=SIZE,cma

Source: kernel/crash_reserve.c (parse_crashkernel), lib/cmdline.c (memparse),
Documentation/admin-guide/kdump/kdump.rst.
"""

import re
from dataclasses import dataclass
from typing import Final

CMDLINE_MAX: Final = 64 * 1024
"""Bytes; COMMAND_LINE_SIZE is at most 4096 (s390x)."""
RANGES_MAX: Final = 64

_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})([kKmMgGtTpPeE]?)", re.ASCII)
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_ROUND_RAM = 128 * 2**20
_U64 = 2**64


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """One `start-end:size` of the ranged form."""

    start_bytes: int
    end_bytes: int | None
    """None: there is no upper end."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CrashKernel:
    """What the kernel's command line asks for; several parameters are combined."""

    ranges: tuple[MemoryRange, ...] = ()
    """The plain form is one range of all sizes."""
    offset_bytes: int | None = None
    high_bytes: int | None = None
    low_bytes: int | None = None
    cma_bytes: int | None = None
    problems: tuple[str, ...] = ()
    """Reasons why the kernel refuses (part of) it."""

    def wanted_bytes(self, ram_bytes: int) -> int:
        """Return the bytes reserved on a machine with this much memory; 0: nothing.

        CMA memory does not count: the capture kernel shares it with user space, and cannot work
        with it alone.
        """
        # Firmware keeps some of the memory, so the kernel rounds up before it compares.
        ram = -(-ram_bytes // _ROUND_RAM) * _ROUND_RAM
        for found in self.ranges:
            if found.start_bytes <= ram and (found.end_bytes is None or ram < found.end_bytes):
                return found.size_bytes
        if self.ranges or self.high_bytes is None:
            return 0
        return self.high_bytes + (self.low_bytes or 0)


def parse_crashkernel(cmdline: bytes) -> CrashKernel | None:
    """Parse `crashkernel=` in /proc/cmdline; None if it is not given.

    The last of each kind counts; a wrong value is left out and named in `problems`. Raises nothing.
    """
    plain: str | None = None
    suffixed: dict[str, str] = {}
    for word in cmdline[:CMDLINE_MAX].decode("ascii", "backslashreplace").split():
        name, equals, value = word.partition("=")
        if name == "--":
            break  # the rest is for init
        if name != "crashkernel" or not equals:
            continue
        suffix = next((s for s in ("high", "low", "cma") if value.endswith("," + s)), None)
        if suffix is None:
            plain = value
        else:
            suffixed[suffix] = value[: -len(suffix) - 1]
    if plain is None and not suffixed:
        return None
    problems: list[str] = []
    ranges, offset = _parse_plain(plain, problems) if plain is not None else ((), None)
    sizes = {suffix: _parse_all(value) for suffix, value in suffixed.items()}
    problems += [f"no size before ,{suffix}" for suffix, size in sizes.items() if size is None]
    if plain is None and "high" not in suffixed:
        problems.append("neither a plain size nor ,high: nothing is reserved")
    return CrashKernel(
        ranges=ranges,
        offset_bytes=offset,
        high_bytes=sizes.get("high"),
        low_bytes=sizes.get("low"),
        cma_bytes=sizes.get("cma"),
        problems=tuple(problems),
    )


def _parse_plain(value: str, problems: list[str]) -> tuple[tuple[MemoryRange, ...], int | None]:
    sizes, at, offset_text = value.partition("@")
    offset = _parse_all(offset_text) if at else None
    if at and offset is None:
        problems.append("no address after @")
        return (), None
    if sizes == "auto":
        problems.append("'auto' is understood by the kernels of RHEL 8 and before only")
        return (), None
    if ":" not in sizes:
        size = _parse_all(sizes)
        if not size:
            problems.append("no size, or one of 0")
            return (), None
        return (MemoryRange(0, None, size),), offset
    ranges = []
    for part in sizes.split(",")[:RANGES_MAX]:
        found = _parse_range(part)
        if found is None:
            # The kernel stops here; what came before counts only if that matched.
            problems.append("a range is not START-[END]:SIZE")
            break
        ranges.append(found)
    return tuple(ranges), offset


def _parse_range(text: str) -> MemoryRange | None:
    bounds, _, size_text = text.partition(":")
    start_text, dash, end_text = bounds.partition("-")
    start, size = _parse_all(start_text), _parse_all(size_text)
    end = _parse_all(end_text) if end_text else None
    if start is None or size is None or not dash or (end_text and end is None):
        return None
    if end is not None and end <= start:
        return None
    return MemoryRange(start, end, size)


def _parse_all(text: str) -> int | None:
    """Parse a number as memparse() does: 0x…, 0… in octal, and suffixes for powers of 1024."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    digits, suffix = found[1], found[2].lower()
    octal = digits[0] == "0" and digits[1:2] not in ("", "x", "X")
    try:
        number = int(digits, 8) if octal else int(digits, 0)
    except ValueError:
        return None  # 08: memparse would read 0 and stop at the 8
    number <<= _SHIFTS[suffix]
    return number if number < _U64 else None
