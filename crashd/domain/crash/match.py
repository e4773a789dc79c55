"""Parses crashctl's MATCH and filters: text in, a validated query out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import StrEnum
from typing import Any

from crashd.domain.crash.model import ID_PATTERN, LIST_KEYS, Kind
from crashd.domain.signals import signal_number
from crashd.domain.units import parse_duration
from crashd.errors import FormatError, UsageError

TERMS_MAX = 64
TERM_MAX = 4096
ID_PREFIX_MIN = 4
"""The least characters of an id that name a crash."""
_UNIT = re.compile(
    r".+\.(service|scope|socket|mount|automount|swap|target|timer|path|device)", re.DOTALL
)
_ID_TEXT = re.compile(r"[0-9a-z-]+", re.ASCII)
_FIELD = re.compile(r"([A-Za-z_]+)=(.*)", re.DOTALL)
_NESTED = ("capture", "core", "kernel")
_COMPUTED = ("count_of_signature", "time")


class Field(StrEnum):
    """What a term is compared with: a key of the JSON, or a meaning of a bare word."""

    ID_PREFIX = "id prefix"
    PID = "pid"
    COMM = "comm"
    EXE = "exe"
    UNIT = "unit"
    SLICE = "slice"


@dataclass(frozen=True, slots=True)
class Alternative:
    """One meaning of a term."""

    field: str
    value: str | int


@dataclass(frozen=True, slots=True)
class Term:
    """One MATCH; it matches if any of its alternatives does."""

    text: str
    alternatives: tuple[Alternative, ...]
    explicit: bool = False
    """Written as FIELD=VALUE."""

    @property
    def group(self) -> str:
        """The field: terms of one group widen the match, terms of different groups narrow it."""
        fields = [a.field for a in self.alternatives if a.field != Field.ID_PREFIX]
        return fields[0] if fields else Field.ID_PREFIX


@dataclass(frozen=True, slots=True)
class Query:
    """Which crashes to list."""

    terms: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    kind: str | None = None
    signature: str | None = None
    limit: int | None = None
    reverse: bool = False
    """Oldest first."""

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return {
            "terms": list(self.terms),
            "since_ns": self.since_ns,
            "until_ns": self.until_ns,
            "kind": self.kind,
            "signature": self.signature,
            "limit": self.limit,
            "reverse": self.reverse,
        }

    @classmethod
    def from_json(cls, document: object) -> "Query":
        """Parse the object that `to_json` builds; it may come from anybody.

        Raises:
            FormatError: it does not have that form, or is too large.
        """
        if not isinstance(document, Mapping) or not set(document) <= set(Query().to_json()):
            raise FormatError("query is not an object with known keys")
        terms = document.get("terms", [])
        if not isinstance(terms, list) or len(terms) > TERMS_MAX:
            raise FormatError(f"query: terms is not a list of at most {TERMS_MAX}")
        for term in terms:
            if not isinstance(term, str) or len(term) > TERM_MAX:
                raise FormatError("query: a term is not text, or is too long")
        kind = document.get("kind")
        if kind is not None and kind not in list(Kind):
            raise FormatError("query: unknown kind")
        signature = document.get("signature")
        if signature is not None and (not isinstance(signature, str) or len(signature) > TERM_MAX):
            raise FormatError("query: signature is not text, or is too long")
        return cls(
            terms=tuple(terms),
            since_ns=_number(document, "since_ns"),
            until_ns=_number(document, "until_ns"),
            kind=kind,
            signature=signature,
            limit=_number(document, "limit"),
            reverse=document.get("reverse", False) is True,
        )


def _number(document: Mapping[str, Any], key: str) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise FormatError(f"query: {key} is not a number")
    return value


def parse_term(text: str) -> Term:
    """Parse one MATCH.

    Raises:
        UsageError: FIELD is unknown, or the value is not valid for it.
    """
    if not text:
        raise UsageError("empty MATCH")
    field = _FIELD.fullmatch(text)
    if field:
        return _parse_field(text, field[1], field[2])
    found: list[Alternative] = []
    if ID_PATTERN.fullmatch(text):
        return Term(text, (Alternative(Field.ID_PREFIX, text),))
    if text.startswith("/"):
        return Term(text, (Alternative(Field.EXE, text),))
    if _ID_TEXT.fullmatch(text) and len(text) >= ID_PREFIX_MIN:
        found.append(Alternative(Field.ID_PREFIX, text))
    if text.isascii() and text.isdigit() and len(text) <= 10:
        found.append(Alternative(Field.PID, int(text)))
    elif text.endswith(".slice"):
        found.append(Alternative(Field.SLICE, text))
    elif _UNIT.fullmatch(text):
        found.append(Alternative(Field.UNIT, text))
    found.append(Alternative(Field.COMM, text))
    return Term(text, tuple(found))


def _parse_field(text: str, name: str, value: str) -> Term:
    """Parse FIELD=VALUE; coredumpctl's names (COREDUMP_PID) work as well."""
    key = name.lower().removeprefix("coredump_")
    if key == "signal":
        number = signal_number(value)
        if number is None:
            raise UsageError(f"{text}: {value!r} is not a signal")
        return Term(text, (Alternative("signal", number),), explicit=True)
    if key not in LIST_KEYS or key in _NESTED or key in _COMPUTED:
        known = ", ".join(k for k in LIST_KEYS if k not in _NESTED and k not in _COMPUTED)
        raise UsageError(f"unknown field {name}", hint=f"known fields: {known}")
    if key in ("pid", "tid", "uid", "gid", "si_code"):
        if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
            raise UsageError(f"{text}: {value!r} is not a number")
        return Term(text, (Alternative(key, int(value)),), explicit=True)
    if key == "pinned":
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"{text}: {value!r} is neither true nor false")
        return Term(
            text, (Alternative(key, int(value.lower() in ("true", "1", "yes"))),), explicit=True
        )
    return Term(text, (Alternative(key, value),), explicit=True)


def parse_time(text: str, now_ns: int) -> int:
    """Parse a time for --since and --until, as journalctl(1) does; return ns since the epoch.

    Accepts ISO 8601 (local time without an offset), a date, a time of today, `now`, `today`,
        `yesterday`, `tomorrow`, `-1h`, `+5min`, `2 days ago` and `@epoch`.

    Raises:
        UsageError: `text` is none of these.
    """
    word = text.strip()
    try:
        return _in_range(_parse_time(word, now_ns))
    except (ValueError, OverflowError, UsageError) as e:
        raise UsageError(
            f"{text!r} is not a time",
            hint="examples: 2026-11-23 05:02, yesterday, -1h, '2 days ago', @1795412639",
        ) from e


def _parse_time(word: str, now_ns: int) -> int:
    # local time without an offset, because the offset can differ between two moments of one day
    midnight = datetime.combine(datetime.fromtimestamp(now_ns // 10**9), time.min)
    days = {"today": 0, "yesterday": -1, "tomorrow": 1}
    if word == "now":
        return now_ns
    if word in days:
        return _ns(midnight + timedelta(days=days[word]))
    if word.startswith("@"):
        return round(float(word[1:]) * 1e9)
    if word.startswith(("-", "+")):
        amount = parse_duration(word[1:].strip())
        return now_ns - amount if word[0] == "-" else now_ns + amount
    if word.endswith(" ago"):
        return now_ns - parse_duration(word[:-4].strip())
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", word, re.ASCII):
        word = f"{midnight:%Y-%m-%d} {word.zfill(len(word) + (word[1] == ':'))}"
    return _ns(datetime.fromisoformat(word))


def _ns(moment: datetime) -> int:
    """Convert a moment to ns; without an offset it is local time."""
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000


def _in_range(time_ns: int) -> int:
    if not -(1 << 63) <= time_ns < 1 << 63:
        raise ValueError("outside the range of 64-bit nanoseconds")
    return time_ns
