"""Parses the times of --since and --until: every form of "PARSING TIMESTAMPS" in systemd.time(7).

Also what crashd itself prints: ISO 8601, and local time with the zone's abbreviation.
"""

import re
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo

from crashd.domain.units import parse_duration
from crashd.errors import UsageError

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WEEKDAY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)([a-z]*),?\s+", re.ASCII | re.IGNORECASE)
_DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}
_MOMENT = re.compile(
    r"(?:(?P<year>\d{2}|\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})(?:[T ]\s*(?=\d)|$))?"
    r"(?:(?P<hour>\d{1,2}):(?P<minute>\d{1,2})(?::(?P<second>\d{1,2})(?:\.(?P<part>\d{1,9}))?)?)?",
    re.ASCII,
)
_OFFSET = re.compile(r"(.*?[\d:])\s?(Z|[+-]\d{2}(?::?\d{2})?)", re.ASCII | re.DOTALL)
_ZONED = re.compile(r"(.+?)\s+([A-Za-z][A-Za-z0-9_+/-]*)", re.ASCII | re.DOTALL)
_LAST_NS = (1 << 63) - 1
_CENTURY = 69
"""Two digits of a year from here on belong to the 20th century, as for strptime(3)."""


def parse_time(text: str, now_ns: int) -> int:
    """Parse a time; return ns since the epoch.

    Accepts a date, a time of today, or both, with a weekday before it and with a zone behind it
    (UTC, an abbreviation of the local zone, a name such as Asia/Tokyo, an offset); without a zone
    it is local time. Also `now`, `today`, `yesterday`, `tomorrow`, `-1h`, `+5min`, `2 days ago`,
    `1h left`, `@epoch`, and unlike systemd `yesterday 12:30`.

    Raises:
        UsageError: `text` is none of these.
    """
    try:
        return _in_range(_parse(text.strip(), now_ns))
    except (ValueError, OverflowError, UsageError) as e:
        raise UsageError(
            f"{text!r} is not a time",
            hint="examples: 2026-11-23 05:02, yesterday, -1h, '2 days ago', @1795412639",
        ) from e


def _parse(word: str, now_ns: int) -> int:
    if word == "now":
        return now_ns
    if word.startswith("@"):
        return round(float(word[1:]) * 1e9)
    if word.startswith(("-", "+")):
        amount = _duration(word[1:])
        return now_ns - amount if word[0] == "-" else now_ns + amount
    if word.endswith(" ago"):
        return now_ns - _duration(word[:-4])
    if word.endswith(" left"):
        return now_ns + _duration(word[:-5])
    day = _WEEKDAY.match(word)
    if day:
        word = word[day.end() :]
    if (offset := _OFFSET.fullmatch(word)) and (":" in offset[1] or offset[2] == "Z"):
        zone: tzinfo | None = UTC if offset[2] == "Z" else _offset(offset[2])
        return _ns(_moment(offset[1], now_ns, zone, day))
    if zoned := _ZONED.fullmatch(word):
        return _in_zone(zoned[1], zoned[2], now_ns, day)
    return _ns(_moment(word, now_ns, None, day))


def _duration(text: str) -> int:
    """Parse a time span in ns; unlike in the configuration, a number at its end is of seconds."""
    return parse_duration(re.sub(r"\d(?=\s*$)", r"\g<0>s", text.strip(), flags=re.ASCII))


def _moment(word: str, now_ns: int, zone: tzinfo | None, weekday: re.Match[str] | None) -> datetime:
    """Parse date, time of day or both; the day is today without a date, the time midnight."""
    # local time without an offset, because the offset can differ between two moments of one day
    today = datetime.combine(datetime.fromtimestamp(now_ns // 10**9, zone), time.min, zone)
    name, _, clock = word.partition(" ")
    if name in _DAYS:
        today += timedelta(days=_DAYS[name])
        word = clock.strip()
        if "-" in word:
            raise ValueError("two dates")
    moment = _written(word, today) if word or name not in _DAYS else today
    if weekday:
        name = _WEEKDAYS[moment.weekday()]
        if (weekday[1] + weekday[2]).lower() not in (name, name[:3]):
            raise ValueError("that day is not that weekday")
    return moment


def _written(word: str, today: datetime) -> datetime:
    match = _MOMENT.fullmatch(word)
    if not match or not word:
        raise ValueError("neither a date nor a time")
    moment = today
    if match["year"]:
        year = int(match["year"])
        if len(match["year"]) == 2:
            year += 1900 if year >= _CENTURY else 2000
        day = int(match["day"])
        if not 1 <= day <= 31:
            raise ValueError("no month has that day")
        # like mktime(3): the 30th of February is the 1st or 2nd of March
        moment = today.replace(year=year, month=int(match["month"]), day=1) + timedelta(day - 1)
    if match["hour"] is None:
        return moment
    second = int(match["second"] or 0)
    part = int((match["part"] or "0").ljust(9, "0")[:6])
    moment = moment.replace(
        hour=int(match["hour"]), minute=int(match["minute"]), second=min(second, 59)
    )
    if second > 61:
        raise ValueError("no minute has that many seconds")
    return moment + timedelta(seconds=max(second - 59, 0), microseconds=part)


def _offset(text: str) -> timezone:
    digits = text[1:].replace(":", "").ljust(4, "0")
    span = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-span if text[0] == "-" else span)


def _in_zone(word: str, name: str, now_ns: int, weekday: re.Match[str] | None) -> int:
    """Parse a time in a zone that is named by its abbreviation or by its place."""
    if name.upper() in ("UTC", "GMT"):
        return _ns(_moment(word, now_ns, UTC, weekday))
    local = _moment(word, now_ns, None, weekday)
    # both abbreviations of the year, those of an hour that comes twice first
    for other in (local, local.replace(fold=1), *(local.replace(month=m, day=1) for m in (1, 7))):
        there = other.astimezone()
        if there.tzname() == name:
            return _ns(local.replace(tzinfo=timezone(there.utcoffset() or timedelta(0))))
    import zoneinfo  # most times are local

    try:
        place = zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as e:
        raise ValueError(f"no time zone {name}") from e
    return _ns(_moment(word, now_ns, place, weekday))


def _ns(moment: datetime) -> int:
    """Convert a moment to ns; without an offset it is local time. All after 2262 is as late."""
    ns = int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000
    return min(ns, _LAST_NS)


def _in_range(time_ns: int) -> int:
    if not -(1 << 63) <= time_ns <= _LAST_NS:
        raise ValueError("outside the range of 64-bit nanoseconds")
    return time_ns
