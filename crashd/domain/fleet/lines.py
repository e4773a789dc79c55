"""Lines of records: one revision of a crash each, as a JSON object. Pure.

A line is the record of crash.json, and beside its keys

    revision      grows with each revision of a crash; of two lines the larger one counts
    labels        the host's labels
    crashd        the version of crashd that wrote the line
    fleet         {core, log, stored_bytes, mini, reason}: names of the objects that belong to the
                  crash, or why its core stays on the host
    environ_age   base64 of the environment in the age format; `environ` is null then

or, after a crash was deleted, the same keys and `{id, deleted: {reason, time_ns}}` alone: who
deletes a crash wants its data gone.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NoReturn

from crashd.domain.crash.boundedrecord import RECORD_BYTES
from crashd.domain.crash.model import ID_PATTERN, SCHEMA, Crash, encode, from_json, to_json
from crashd.domain.fleet.keys import Part, parse_core_key
from crashd.errors import FormatError, NewerError

LINE_BYTES: Final = RECORD_BYTES + (1 << 20)
"""Limit for a line: a record, an encrypted environment, and the other keys."""
LINES_MAX: Final = 256
"""Lines in an object."""
LEVELS_MAX: Final = 250
"""Levels of nesting in a line. Python reads a thousand levels or twenty thousand, by its version;
neither PostgreSQL nor another version that reads the index takes as many.
"""
LABELS_MAX: Final = 16
LABEL_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
LABEL_VALUE_MAX: Final = 200
REVISION_MAX: Final = (1 << 63) - 1
VERSION_MAX: Final = 64
"""Characters of the version of crashd."""


def _parse_float(text: str) -> float:
    """Parse a number with a point or an exponent; one out of range would not be the same again."""
    value = float(text)
    if not math.isfinite(value) or (value == 0 and re.search("[1-9]", text.lower().split("e")[0])):
        raise ValueError("number is out of range")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_float=_parse_float, parse_constant=_refuse_constant)


class CoreReason(StrEnum):
    """Why a core stays on its host."""

    ENOUGH = "enough"
    """The fleet, or this host, has sent enough cores of the signature."""
    POLICY = "policy"
    """[fleet] cores or kernel_dumps leaves it there."""
    NO_CORE = "no-core"
    """There is none, or not any more."""


class DeletedBy(StrEnum):
    """Who deleted a crash."""

    OPERATOR = "operator"
    """`crashctl delete` on its host."""
    FLEET = "fleet"
    """`crashctl --fleet delete`, obeyed by the host."""


@dataclass(frozen=True, slots=True)
class FleetFiles:
    """Where the files of a crash are in object storage."""

    core: str | None = None
    """Name of the core's object, which may arrive after the line."""
    log: str | None = None
    stored_bytes: int = 0
    """Size of the core's object, about: encryption adds some bytes. 0 if it is unknown."""
    reason: CoreReason | None = None
    """Why there is no core; None also as long as that is undecided."""
    mini: bool = False
    """The core's object is a mini core, made of the record's core, which is larger."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A crash that its host has deleted."""

    by: DeletedBy
    time_ns: int


@dataclass(frozen=True, slots=True)
class Line:
    """One revision of a crash."""

    id: str
    revision: int
    crash: Crash | None
    """None after its deletion."""
    labels: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    """Of the crashd that wrote it."""
    files: FleetFiles = FleetFiles()
    environ_age: str | None = None
    """Base64 of the encrypted environment: a JSON list of `NAME=value`."""
    deletion: Deletion | None = None


def next_revision(last: int, time_ns: int) -> int:
    """Return the next revision of a crash: the wall clock, but always more than the `last`.

    So revisions also grow when the host has lost its count of them.
    """
    return min(REVISION_MAX, max(last + 1, time_ns))


def build_line(line: Line) -> bytes:
    """Build one line, without its newline."""
    if line.crash is not None:
        document = to_json(line.crash)
        if line.environ_age is not None:
            document["environ"] = None
            document.pop("environ_base64", None)
            document["environ_age"] = line.environ_age
        document["fleet"] = {
            "core": line.files.core,
            "log": line.files.log,
            "stored_bytes": line.files.stored_bytes,
            "mini": line.files.mini,
            "reason": None if line.files.reason is None else line.files.reason.value,
        }
    else:
        deletion = line.deletion or Deletion(DeletedBy.OPERATOR, 0)
        document = {"schema": SCHEMA, "id": line.id}
        document["deleted"] = {"reason": deletion.by.value, "time_ns": deletion.time_ns}
    document["revision"] = line.revision
    document["labels"] = dict(line.labels)
    document["crashd"] = line.version
    return encode(document)


def parse_line(raw: bytes, host: str) -> Line:
    """Parse one line from an object of this host; it may hold anything.

    Raises:
        NewerError: its schema is newer.
        FormatError: it is not such a line, or names another host's objects.

    """
    return parse_document(read_document(raw), host)


def read_document(raw: bytes) -> dict[str, Any]:
    """Read the JSON object of a line.

    Raises:
        FormatError: it is not one, or is too long or nested too deeply.

    """
    if len(raw) > LINE_BYTES:
        raise FormatError(f"line of {len(raw)} bytes, at most {LINE_BYTES} are taken")
    try:
        document = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as e:
        raise FormatError("line is not JSON") from e
    if not isinstance(document, dict):
        raise FormatError("line is not a JSON object")
    if _is_deep(document):
        raise FormatError(f"line has more than {LEVELS_MAX} levels of nesting")
    return document


def _is_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(LEVELS_MAX):
        objects = [value.values() for value in level if isinstance(value, dict)]
        lists = [value for value in level if isinstance(value, list)]
        level = [
            member
            for members in (*objects, *lists)
            for member in members
            if isinstance(member, dict | list)
        ]
        if not level:
            return False
    return True


def parse_document(document: dict[str, Any], host: str) -> Line:
    """Parse the JSON object of a line.

    Raises:
        NewerError: its schema is newer.
        FormatError: see `parse_line`.

    """
    revision = document.get("revision")
    if type(revision) is not int or not 0 < revision <= REVISION_MAX:
        raise FormatError("line has no valid revision")
    labels, version = parse_labels(document.get("labels")), document.get("crashd")
    if not isinstance(version, str) or len(version) > VERSION_MAX or not version.isascii():
        raise FormatError("line has no valid version of crashd")
    if document.get("deleted") is not None:
        crash_id, deletion = _parse_deletion(document)
        return Line(crash_id, revision, None, labels, version, deletion=deletion)
    environ_age = document.get("environ_age")
    if environ_age is not None and not isinstance(environ_age, str):
        raise FormatError("line has no valid environ_age")
    crash = from_json(document)
    files = _parse_files(document.get("fleet"), host, crash.id)
    return Line(crash.id, revision, crash, labels, version, files, environ_age)


def parse_labels(labels: object) -> dict[str, str]:
    """Parse the labels of a host.

    Raises:
        FormatError: there are too many, or one is not a short text with a plain name.

    """
    if labels is None:
        return {}
    if not isinstance(labels, dict) or len(labels) > LABELS_MAX:
        raise FormatError(f"labels are not an object of at most {LABELS_MAX} texts")
    for name, value in labels.items():
        if not isinstance(name, str) or not LABEL_PATTERN.fullmatch(name):
            raise FormatError(f"label {str(name)[:80]!r} is not of the form [a-z][a-z0-9_]*")
        if not isinstance(value, str) or len(value) > LABEL_VALUE_MAX or not value.isprintable():
            raise FormatError(
                f"label {name} is not a printable text of at most {LABEL_VALUE_MAX} characters"
            )
    return dict(labels)


def _parse_deletion(document: dict[str, Any]) -> tuple[str, Deletion]:
    schema, crash_id, deleted = (document.get(key) for key in ("schema", "id", "deleted"))
    if type(schema) is not int or not isinstance(deleted, dict):
        raise FormatError("line of a deleted crash is malformed")
    if schema > SCHEMA:
        raise NewerError(f"line has schema {schema}, newer than {SCHEMA}")
    if not isinstance(crash_id, str) or not ID_PATTERN.fullmatch(crash_id):
        raise FormatError(
            f"crash id {str(crash_id)[:80]!r} is not of the form TIME-BOOT-PID-RANDOM"
        )
    time_ns = deleted.get("time_ns")
    if type(time_ns) is not int or not 0 <= time_ns < 2**63:
        raise FormatError("line of a deleted crash has no valid time")
    try:
        return crash_id, Deletion(DeletedBy(str(deleted.get("reason"))), time_ns)
    except ValueError as e:
        raise FormatError("line of a deleted crash has no known reason") from e


def _parse_files(document: object, host: str, crash_id: str) -> FleetFiles:
    if document is None:
        return FleetFiles()
    if not isinstance(document, dict):
        raise FormatError("fleet of a line is not an object")
    core = _own_name(document.get("core"), host, crash_id, Part.CORE)
    log = _own_name(document.get("log"), host, crash_id, Part.LOG)
    size, reason = document.get("stored_bytes", 0), document.get("reason")
    if type(size) is not int or not 0 <= size < 2**63:
        raise FormatError("line has no valid size of its core")
    try:
        why = None if reason is None else CoreReason(str(reason))
        return FleetFiles(core, log, size, why, document.get("mini") is True)
    except ValueError as e:
        raise FormatError("line has no known reason for a missing core") from e


def _own_name(name: object, host: str, crash_id: str, part: Part) -> str | None:
    if name is None:
        return None
    key = parse_core_key(name) if isinstance(name, str) else None
    if key is None or (key.host, key.crash_id, key.part) != (host, crash_id, part):
        raise FormatError(f"line names a {part.value} that is not its own")
    return str(name)
