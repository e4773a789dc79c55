"""A line of records as a row: judged first, then in the form that PostgreSQL takes.

Everything in a line may be a hostile host's. The model of the local record judges it, or `usual`
in its place, which is fast and takes only lines that the model takes; what remains are values that
PostgreSQL would refuse, for one of which the rows of other hosts must not wait: NUL characters,
infinite numbers, texts too long for an index.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from crashd.domain.crash.model import BYTES_KEYS, Crash, Kind, State, to_json
from crashd.domain.fleet.lines import CoreReason, Line, parse_document, read_document
from crashd.errors import FormatError, NewerError
from crashd.fleet.texts import SURROGATE, clean, text
from crashd.fleet.usual import WHAT_MAX, Facts, Judged, read_usual, what_of

TITLE_MAX: Final = 1000
FUTURE_DAYS: Final = 2
"""A host's clock may be so far ahead."""
COLUMNS_TEXT = """
id host day time revision short kind state disposition hostname signature version build labels pid
uid gid signal comm exe unit user_unit slice container_id title what pinned stored_bytes core_key
log_key object doc
"""
COLUMNS: Final = tuple(COLUMNS_TEXT.split())
_TYPES = {
    "int4": "host signature version build labels signal",
    "int8": "revision pid uid gid stored_bytes",
    "date": "day",
    "timestamptz": "time",
    "bool": "pinned",
    "bytea": "doc",
}
TYPES: Final = [
    *(next((t for t, names in _TYPES.items() if c in names.split()), "text") for c in COLUMNS),
    "timestamptz",
]
"""Of COLUMNS and, after them, of `seen`; of a value of json, COPY takes the bytes."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SIGNATURE = re.compile(r"[a-z][a-z0-9]{0,7}-[0-9a-f]{8,64}", re.ASCII)
_KEYS = (
    frozenset(
        [
            *to_json(Crash("", Kind.PROCESS, State.LOST, 0, "")),
            "revision",
            "labels",
            "crashd",
            "fleet",
        ]
    )
    | {f"{key}_base64" for key in BYTES_KEYS}
    | {"environ_age"}
)
_DRIFT = timedelta(hours=36)


class Refused(FormatError):
    """A record that is put into quarantine; `reason` is from a closed set."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True)
class Row:
    """One revision of a crash, or of its deletion, with the texts that become numbers."""

    id: str
    host: str
    day: date
    revision: int
    object: str
    hostname: str
    labels: Mapping[str, str]
    crashd: str
    facts: Facts | None
    """None for a deletion."""
    seen: datetime | None = None
    """When an earlier revision was first indexed."""
    line: int = 0
    """Number of the line in its object."""
    reason: str = ""
    """Who deleted it."""
    time: datetime = _EPOCH
    signature: str = ""
    version: str = ""
    build: str = ""
    title: str = ""
    core_reason: CoreReason | None = None
    """Why the core stays on its host."""
    core_key: str | None = None
    log_key: str | None = None
    doc: bytes = b""
    labels_text: str = "{}"
    """The same for equal sets of labels."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Numbers of its texts, once they are known."""

    @property
    def is_kernel(self) -> bool:
        """Whether a kernel crashed."""
        return self.facts is not None and self.facts.kind == Kind.KERNEL.value


def read_row(raw: bytes, host: str, key: str) -> Row:
    """Judge a line from an object of `host`, and make its row.

    Raises:
        Refused: the line is not a record, or names another host's objects.

    """
    found = read_usual(raw, host, TITLE_MAX)
    if found is None:
        line, document = _read_line(raw, host)
        if line.crash is None:
            return _deletion_row(line, host, key)
        try:
            found = _judge(line, line.crash, raw, document)
        except (ValueError, OverflowError, RecursionError) as e:
            raise _no_index_takes(e) from e
    return _make_row(found, host, key)


def _read_line(raw: bytes, host: str) -> tuple[Line, dict[str, Any]]:
    try:
        document = read_document(raw)
        return parse_document(document, host), document
    except NewerError as e:
        raise Refused("newer", str(e)) from e
    except FormatError as e:
        raise Refused("malformed", str(e)) from e
    except (RecursionError, MemoryError) as e:
        raise Refused("malformed", f"line cannot be read: {type(e).__name__}") from e


def _no_index_takes(error: Exception) -> Refused:
    return Refused("malformed", f"record has a value that no index takes: {error}")


def _deletion_row(line: Line, host: str, key: str) -> Row:
    row = Row(
        id=line.id,
        host=host,
        day=parse_day(line.id),
        revision=line.revision,
        object=key,
        hostname="",
        labels=_clean_labels(line.labels),
        crashd=line.version,
        facts=None,
    )
    row.labels_text = _label_text(tuple(sorted(row.labels.items())))
    row.reason = "" if line.deletion is None else line.deletion.by.value
    return row


def _make_row(found: Judged, host: str, key: str) -> Row:
    stamp = _stamp_of(found.id)
    time = _EPOCH + timedelta(microseconds=found.time_ns // 1000)
    if abs(time - stamp) > _DRIFT:
        time = stamp  # a question for a time looks at the days around it
    if found.signature and not _SIGNATURE.fullmatch(found.signature):
        raise _no_index_takes(ValueError("signature is malformed"))
    return Row(
        id=found.id,
        host=host,
        day=stamp.date(),
        revision=found.revision,
        object=key,
        hostname=found.hostname,
        labels=found.labels,
        crashd=found.crashd,
        facts=found.facts,
        time=time,
        signature=found.signature,
        version=text(found.release or found.labels.get("version")),
        build=found.build,
        title=found.title,
        core_reason=found.core_reason,
        core_key=found.core_key,
        log_key=found.log_key,
        doc=found.doc,
        labels_text=_label_text(tuple(sorted(found.labels.items()))),
    )


def _clean_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: clean(value) for name, value in labels.items()}


@lru_cache(1000)
def _label_text(labels: tuple[tuple[str, str], ...]) -> str:
    return json.dumps(dict(labels), ensure_ascii=False)


def _judge(line: Line, crash: Crash, raw: bytes, document: dict[str, Any]) -> Judged:
    """Make of a line that the model has taken the same as `read_usual` makes of one."""
    _check_numbers(crash)
    kernel = crash.kernel or {}
    release = kernel.get("release") if crash.kind is Kind.KERNEL else None
    return Judged(
        id=line.id,
        revision=line.revision,
        labels=_clean_labels(line.labels),
        crashd=line.version,
        time_ns=crash.time_ns,
        hostname=text(crash.hostname),
        signature=crash.signature or "",
        build=text(crash.build_id),
        release=release if isinstance(release, str) else "",
        title=text(crash.title, TITLE_MAX),
        core_key=line.files.core,
        log_key=line.files.log,
        core_reason=line.files.reason,
        facts=Facts(
            crash.short_id,
            crash.kind.value,
            crash.state.value,
            crash.capture.disposition.value,
            crash.pid,
            crash.uid,
            crash.gid,
            crash.signal,
            text(crash.comm),
            text(crash.exe),
            text(crash.unit) or None,
            text(crash.user_unit) or None,
            text(crash.slice) or None,
            text(crash.container_id) or None,
            text(what_of(crash.signal, kernel), WHAT_MAX),
            crash.pinned,
            crash.core.stored_bytes,
        ),
        doc=_encode_line(raw, document),
    )


def values(row: Row, numbers: Mapping[str, int]) -> tuple[Any, ...]:
    """Build the row's values in the order of COLUMNS; `numbers` are those of its texts."""
    facts = row.facts
    assert facts is not None  # for the type checker; deletions have no row
    short, kind, state, disposition, *names, what, pinned, stored_bytes = facts
    return (
        row.id,
        numbers["host"],
        row.day,
        row.time,
        row.revision,
        short,
        kind,
        state,
        disposition,
        row.hostname,
        numbers["signature"],
        numbers["version"],
        numbers["build"],
        numbers["labels"],
        *names,  # from pid to container_id
        row.title,
        what,
        pinned,
        stored_bytes,
        row.core_key,
        row.log_key,
        row.object,
        row.doc,
    )


def parse_day(crash_id: str) -> date:
    """Return the day in an id: it never changes, whatever a later revision says of the time.

    Raises:
        Refused: there is no such day.

    """
    return _stamp_of(crash_id).date()


def _stamp_of(crash_id: str) -> datetime:
    try:
        return _stamp(crash_id)
    except ValueError as e:
        raise Refused("malformed", f"id {crash_id} has no date") from e


def _stamp(crash_id: str) -> datetime:
    """Return the time in an id."""
    day, clock = int(crash_id[:8]), int(crash_id[9:15])
    year, month = day // 10000, day // 100 % 100
    hour, minute = clock // 10000, clock // 100 % 100
    return datetime(year, month, day % 100, hour, minute, clock % 100, tzinfo=UTC)


def _encode_line(raw: bytes, given: dict[str, Any]) -> bytes:
    """Return the JSON of a record that the model has taken: the line itself, if it is only that.

    Whoever reads it reads it by the model again, which alone says what the keys mean.
    """
    if b"\\u" not in raw and given.keys() <= _KEYS:
        return raw  # encoding costs a third of all; an escape may be of what no text may have
    return encode({key: value for key, value in given.items() if key in _KEYS})


def encode(document: Mapping[str, Any]) -> bytes:
    """Encode a record as JSON whose texts PostgreSQL takes.

    Raises:
        ValueError: it has a number that is none, or is nested too deeply.

    """
    encoded = _dump(document)
    if "\\u0000" in encoded:
        encoded = _dump(_clean_all(document))
    if encoded.isascii():
        return encoded.encode()
    return SURROGATE.sub(lambda m: f"\\\\u{ord(m[0]):04x}", encoded).encode()


def _dump(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _clean_all(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): _clean_all(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_all(member) for member in value]
    return value


def _check_numbers(crash: Crash) -> None:
    for name in ("pid", "uid", "gid"):
        value = getattr(crash, name)
        if value is not None and not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"{name} is out of range")
    if crash.signal is not None and not -(1 << 31) <= crash.signal < 1 << 31:
        raise ValueError("signal is out of range")
