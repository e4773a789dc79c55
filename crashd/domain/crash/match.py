"""Parses crashctl's MATCH: text in, the fields and values to compare out."""

from __future__ import annotations

from crashd.domain.crash.keys import ID_TEXT, LIST_KEYS, RECORD_KEYS
from crashd.domain.crash.query import ID_PREFIX_MIN
from crashd.domain.signals import signal_number
from crashd.errors import UsageError
from crashd.records import NamedTuple

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

# Words are looked at without regular expressions, as far as most need it: loading re takes as long
# as reading a listing.
_UNITS_TEXT = "service scope socket mount automount swap target timer path device"
_UNITS = frozenset(_UNITS_TEXT.split())
_ID_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz-")
_SIGNATURE = r"[pk][0-9]{1,3}-[0-9a-f]{16}"
_PREFIXES = ("coredump_", "crashd_", "_systemd_", "_")
"""How coredumpctl(1) and the journal begin field names: COREDUMP_PID, _SYSTEMD_UNIT."""
_NESTED = ("capture", "core", "kernel", "evicted")
_COMPUTED = ("count_of_signature", "time")
_UNLISTED_TEXT = "user_unit owner_uid package_name package_version root cgroup session rlimit_core"
_UNLISTED = tuple(_UNLISTED_TEXT.split())
_JOURNALS = {
    "rlimit": "rlimit_core",
    "code": "si_code",
    "thread_name": "thread_comm",
    **{f"proc_{key}": key for key in ("status", "maps", "limits", "mountinfo", "cgroup")},
}
"""Fields of systemd.journal-fields(7), without their prefix, that records call otherwise."""
FILENAME, TIMESTAMP, TRUNCATED = "filename", "timestamp", "truncated"
"""Fields of the journal that records have in other forms; only `-F` shows the first two."""
FIELDS = tuple(sorted({*LIST_KEYS, *_UNLISTED} - {*_NESTED, *_COMPUTED}, key=str.lower))
"""What FIELD=VALUE compares."""
SHOWN = tuple(sorted({*LIST_KEYS, *RECORD_KEYS, FILENAME, TIMESTAMP, TRUNCATED}))
"""What `-F` shows."""
NUMBERS = ("pid", "tid", "uid", "gid", "owner_uid", "si_code")
_WILDCARDS = frozenset("*?[")
GLOB_MAX = 256
"""Characters of a pattern: a user's pattern must not keep the daemon busy."""


class Field:
    """What a term is compared with: a key of the JSON, or a meaning of a bare word.

    Not an enum, because any key may be compared with, and enum takes as long to load as a listing.
    """

    ID_PREFIX: Final = "id prefix"
    PID: Final = "pid"
    SIGNAL: Final = "signal"
    SIGNATURE: Final = "signature"
    COMM: Final = "comm"
    EXE: Final = "exe"
    UNIT: Final = "unit"
    SLICE: Final = "slice"


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


def parse_term(text: str) -> Term:
    """Parse one MATCH.

    Raises:
        UsageError: FIELD is unknown, or the value is not valid for it.
    """
    if not text:
        raise UsageError("empty MATCH")
    name, equals, value = text.partition("=")
    if equals and is_field_name(name):
        return _parse_field(text, name, value)
    found: list[Alternative] = []
    is_id_part = is_part_of_id(text)
    if is_id_part and _is_whole(text, ID_TEXT):
        return Term(text, (Alternative(Field.ID_PREFIX, text),))
    if is_id_part and _is_whole(text, _SIGNATURE):
        return Term(text, (Alternative(Field.SIGNATURE, text), Alternative(Field.COMM, text)))
    if text.startswith("/"):
        return Term(text, _text(Field.EXE, text))
    if is_id_part and len(text) >= ID_PREFIX_MIN:
        found.append(Alternative(Field.ID_PREFIX, text))
    if text.isascii() and text.isdigit() and len(text) <= 10:
        found.append(Alternative(Field.PID, int(text)))
    elif text.endswith(".slice"):
        found += _text(Field.SLICE, text)
    elif is_unit(text):
        found += _text(Field.UNIT, text)
    elif text.isupper() and (number := signal_number(text)) is not None:
        found.append(Alternative(Field.SIGNAL, number))
    found += _text(Field.COMM, text)
    return Term(text, tuple(found))


def is_field_name(text: str) -> bool:
    """Return whether a text may name a field: letters of ASCII and underscores."""
    return text.isascii() and text.replace("_", "x").isalpha()


def is_part_of_id(text: str) -> bool:
    """Return whether all characters may be in an id."""
    return bool(text) and _ID_CHARACTERS.issuperset(text)


def is_unit(text: str) -> bool:
    """Return whether a text is the name of a unit that is not a slice."""
    stem, _, kind = text.rpartition(".")
    return bool(stem) and kind in _UNITS


def _is_whole(text: str, pattern: str) -> bool:
    """Return whether a text, of an id's characters, is a whole id or a signature."""
    if len(text) < len("p2-0123456789abcdef") or "-" not in text:
        return False
    import re

    return re.fullmatch(pattern, text) is not None


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
    key = name.lower()
    key = key[len(next((p for p in _PREFIXES if key.startswith(p)), "")) :]
    key = _JOURNALS.get(key, key)
    if key in fields:
        return key
    if key in {*SHOWN, *FIELDS}:
        raise UsageError(f"{name} is shown by -F, but crashes are not matched by it")
    from difflib import get_close_matches  # only wrong names need it

    near = get_close_matches(key, fields, 1)
    known = ", ".join(fields)
    raise UsageError(
        f"unknown field {name}" + (f", did you mean {near[0]}?" if near else ""),
        hint=f"known fields: {known}",
    )


def _parse_field(text: str, name: str, value: str) -> Term:
    """Parse FIELD=VALUE; the names of coredumpctl and of the journal work as well."""
    if name.lower().endswith(TRUNCATED) and field_of(name, SHOWN) == TRUNCATED:
        name, value = "state", TRUNCATED if value == "1" else value
    key = field_of(name)
    found: tuple[Alternative, ...]
    if key == "signal":
        number = signal_number(value)
        if number is None:
            raise UsageError(f"{text}: {value!r} is not a signal")
        found = (Alternative(Field.SIGNAL, number),)
    elif key in NUMBERS:
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
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
