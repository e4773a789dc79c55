"""The names of a fleet's objects (DESIGN section 12): built and parsed by the same rules. Pure.

    records/v1/<host>/<yyyy-mm-dd>/<hh>/<boot>-<sequence>.jsonl.zst   lines of records
    cores/v1/<host>/<id>.core.zst, .core.zst.age                      a core as stored
    cores/v1/<host>/<id>.log.zst, .log.zst.age                        a kernel crash's log
    policy/v1/signatures.zst                                          signatures with enough cores
    policy/v1/want/<host>                                             what one host is asked for

The prefix is the identity: a record counts for the host whose prefix it lies under.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from crashd.domain.crash.model import ID_PATTERN
from crashd.domain.fleet.hostid import HOST_PATTERN
from crashd.errors import FormatError

RECORDS: Final = "records/v1/"
CORES: Final = "cores/v1/"
WANT: Final = "policy/v1/want/"
SIGNATURES: Final = "policy/v1/signatures.zst"
SEQUENCE_DIGITS: Final = 20
SEQUENCE_MAX: Final = (1 << 63) - 1
HOUR_NS: Final = 3600 * 10**9

_HOST = HOST_PATTERN.pattern
_RECORDS_KEY = re.compile(
    rf"records/v1/({_HOST})/(\d{{4}}-\d\d-\d\d)/(\d\d)/"
    rf"([0-9a-f]{{32}})-(\d{{{SEQUENCE_DIGITS}}})\.jsonl\.zst",
    re.ASCII,
)
_CORE_KEY = re.compile(
    rf"cores/v1/({_HOST})/({ID_PATTERN.pattern})\.(core|log)\.zst(\.age)?", re.ASCII
)
_WANT_KEY = re.compile(rf"policy/v1/want/({_HOST})", re.ASCII)


class Part(StrEnum):
    """What an object below `cores/` holds."""

    CORE = "core"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class RecordsKey:
    """The name of an object with lines of records."""

    host: str
    hour_ns: int
    """The hour of the host's wall clock when the name was given, ns since the epoch."""
    boot_id: str
    sequence: int
    """Grows with each object of a host, also over reboots, unless its state was lost."""


@dataclass(frozen=True, slots=True)
class CoreKey:
    """The name of an object with a core, or a kernel's log."""

    host: str
    crash_id: str
    part: Part
    encrypted: bool


def hour_prefix(host: str, time_ns: int) -> str:
    """Build the prefix of a host's records that were named within the hour of `time_ns`."""
    return f"{RECORDS}{_host(host)}/{_time(time_ns):%Y-%m-%d/%H}/"


def records_key(host: str, time_ns: int, boot_id: str, sequence: int) -> str:
    """Build the name of an object with records.

    Raises:
        FormatError: a part is not of its form.

    """
    if not 0 <= sequence <= SEQUENCE_MAX:
        raise FormatError(f"sequence {sequence} of an object is out of range")
    key = f"{hour_prefix(host, time_ns)}{boot_id}-{sequence:0{SEQUENCE_DIGITS}d}.jsonl.zst"
    parse_records_key(key)
    return key


def parse_records_key(key: str) -> RecordsKey:
    """Parse the name of an object with records.

    Raises:
        FormatError: it is not such a name.

    """
    found = _RECORDS_KEY.fullmatch(key)
    if found is None:
        raise _not(key, "records")
    host, day, hour, boot_id, sequence = found.groups()
    try:
        # not strptime, which takes as long as the object's lines
        start = datetime.fromisoformat(day).replace(hour=int(hour), tzinfo=UTC)
    except ValueError as e:
        raise _not(key, "records") from e
    if start < _EPOCH or int(sequence) > SEQUENCE_MAX:
        raise _not(key, "records")
    hours = (start - _EPOCH) // timedelta(hours=1)
    return RecordsKey(host, hours * HOUR_NS, boot_id, int(sequence))


def core_key(host: str, crash_id: str, *, encrypted: bool, part: Part = Part.CORE) -> str:
    """Build the name of a core's object, or of a kernel's log.

    Raises:
        FormatError: the host or the id is not of its form.

    """
    key = f"{CORES}{_host(host)}/{crash_id}.{part.value}.zst{'.age' if encrypted else ''}"
    parse_core_key(key)
    return key


def parse_core_key(key: str) -> CoreKey:
    """Parse the name of a core's object, or of a kernel's log.

    Raises:
        FormatError: it is not such a name.

    """
    found = _CORE_KEY.fullmatch(key)
    if found is None:
        raise _not(key, "a core")
    host, crash_id, part, age = found.groups()
    return CoreKey(host, crash_id, Part(part), age is not None)


def want_key(host: str) -> str:
    """Build the name of the object that asks a host for something."""
    return WANT + _host(host)


def parse_want_key(key: str) -> str:
    """Parse the name of the object that asks a host for something; return the host.

    Raises:
        FormatError: it is not such a name.

    """
    found = _WANT_KEY.fullmatch(key)
    if found is None:
        raise _not(key, "what a host is asked for")
    return found[1]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _time(time_ns: int) -> datetime:
    try:
        return _EPOCH + timedelta(seconds=max(0, time_ns) // 10**9)
    except OverflowError as e:
        raise FormatError(f"time {time_ns} of an object is out of range") from e


def _host(host: str) -> str:
    if not HOST_PATTERN.fullmatch(host):
        raise FormatError(f"{host[:80]!r} is not the id of a host")
    return host


def _not(key: str, what: str) -> FormatError:
    return FormatError(f"{key[:200]!r} does not name {what}")
