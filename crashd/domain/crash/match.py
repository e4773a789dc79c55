"""Parses crashctl's MATCH and filters: text in, a validated query out."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from crashd.domain.crash.kinds import ID_TEXT, LIST_KEYS, Kind
from crashd.domain.signals import signal_number
from crashd.errors import FormatError, UsageError

TERMS_MAX = 64
TERM_MAX = 4096
ID_PREFIX_MIN = 4
"""The least characters of an id that name a crash."""
# Texts, compiled when they are first used: a listing without MATCH needs none of them.
_UNIT = r"(?s:.+)\.(service|scope|socket|mount|automount|swap|target|timer|path|device)"
_ID_PART = r"[0-9a-z-]+"
_SIGNATURE = r"[pk][0-9]{1,3}-[0-9a-f]{16}"
_FIELD = r"([A-Za-z_]+)=((?s:.*))"
_PREFIX = r"^(?:coredump_|_systemd_|_)"
"""How coredumpctl(1) and the journal begin field names: COREDUMP_PID, _SYSTEMD_UNIT."""
_NESTED = ("capture", "core", "kernel", "evicted")
_COMPUTED = ("count_of_signature", "time")
_UNLISTED = ("user_unit", "owner_uid", "package_name", "package_version")
FIELDS = tuple(sorted({*LIST_KEYS, *_UNLISTED} - {*_NESTED, *_COMPUTED}, key=str.lower))
"""What FIELD=VALUE compares."""
NUMBERS = ("pid", "tid", "uid", "gid", "owner_uid", "si_code")
_WILDCARDS = frozenset("*?[")
GLOB_MAX = 256
"""Characters of a pattern: a user's pattern must not keep the daemon busy."""


class Field(StrEnum):
    """What a term is compared with: a key of the JSON, or a meaning of a bare word."""

    ID_PREFIX = "id prefix"
    PID = "pid"
    SIGNAL = "signal"
    SIGNATURE = "signature"
    COMM = "comm"
    EXE = "exe"
    UNIT = "unit"
    SLICE = "slice"


class Alternative(NamedTuple):
    """One meaning of a term."""

    field: str
    value: str | int
    is_glob: bool = False
    """Whether `value` is a pattern of glob(7), in which `*` also matches `/`."""


class Term(NamedTuple):
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


class Query(NamedTuple):
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
    field = re.fullmatch(_FIELD, text)
    if field:
        return _parse_field(text, field[1], field[2])
    found: list[Alternative] = []
    if re.fullmatch(ID_TEXT, text):
        return Term(text, (Alternative(Field.ID_PREFIX, text),))
    if re.fullmatch(_SIGNATURE, text):
        return Term(text, (Alternative(Field.SIGNATURE, text), Alternative(Field.COMM, text)))
    if text.startswith("/"):
        return Term(text, _text(Field.EXE, text))
    if re.fullmatch(_ID_PART, text) and len(text) >= ID_PREFIX_MIN:
        found.append(Alternative(Field.ID_PREFIX, text))
    if text.isascii() and text.isdigit() and len(text) <= 10:
        found.append(Alternative(Field.PID, int(text)))
    elif text.endswith(".slice"):
        found += _text(Field.SLICE, text)
    elif re.fullmatch(_UNIT, text):
        found += _text(Field.UNIT, text)
    elif text.isupper() and (number := signal_number(text)) is not None:
        found.append(Alternative(Field.SIGNAL, number))
    found += _text(Field.COMM, text)
    return Term(text, tuple(found))


def _text(field: str, value: str) -> tuple[Alternative, ...]:
    """Compare a field with a text: exactly, and as a pattern if it has a wildcard."""
    exact = Alternative(field, value)
    if not is_pattern(value):
        return (exact,)
    return exact, Alternative(field, value, is_glob=True)


def is_pattern(text: str) -> bool:
    """Return whether a text has wildcards.

    Raises:
        UsageError: it is a pattern, and too long.

    """
    if not _WILDCARDS & set(text):
        return False
    if len(text) > GLOB_MAX:
        raise UsageError(f"a pattern has more than {GLOB_MAX} characters")
    return True


def field_of(name: str, fields: Sequence[str] = FIELDS) -> str:
    """Return the field that `name` stands for: `pid` for PID, COREDUMP_PID and _PID.

    Raises:
        UsageError: there is no such field.
    """
    key = re.sub(_PREFIX, "", name.lower(), count=1)
    if key in fields:
        return key
    from difflib import get_close_matches  # only wrong names need it

    near = get_close_matches(key, fields, 1)
    known = ", ".join(fields)
    raise UsageError(
        f"unknown field {name}" + (f", did you mean {near[0]}?" if near else ""),
        hint=f"known fields: {known}",
    )


def _parse_field(text: str, name: str, value: str) -> Term:
    """Parse FIELD=VALUE; the names of coredumpctl and of the journal work as well."""
    key = field_of(name)
    found: tuple[Alternative, ...]
    if key == "signal":
        number = signal_number(value)
        if number is None:
            raise UsageError(f"{text}: {value!r} is not a signal")
        found = (Alternative(Field.SIGNAL, number),)
    elif key in NUMBERS:
        if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
            raise UsageError(f"{text}: {value!r} is not a number")
        found = (Alternative(key, int(value)),)
    elif key == "pinned":
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"{text}: {value!r} is neither true nor false")
        found = (Alternative(key, int(value.lower() in ("true", "1", "yes"))),)
    elif key == "boot_id":
        found = _text(key, value.replace("-", "").lower())
    else:
        found = _text(key, value)
    return Term(text, found, explicit=True)
