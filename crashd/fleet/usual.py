"""Lines as crashd itself writes them, judged in one pass over their bytes.

The model (`domain.fleet.lines`, `domain.crash.model`) judges a line in three steps: JSON, a record
of some eighty fields, and its encoding again. Nearly all lines need less: they are compact JSON
with the model's own keys and plain values, which a compiled validator takes in a tenth of the time.
`read_usual` takes only such lines, and of these only what the model takes, with the same result;
it refuses nothing. Every other line is for the model to judge.
"""

import binascii
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pydantic_core import SchemaValidator, ValidationError
from pydantic_core import core_schema as schema

from crashd.domain.crash.keys import SCHEMA, SHORT_ID_LENGTH
from crashd.domain.crash.kinds import Kind, State
from crashd.domain.crash.model import (
    BYTES_KEYS,
    CORE_NAME,
    ID_PATTERN,
    LISTS,
    PLAIN_TYPES,
    Disposition,
    Engine,
    Identity,
    Mode,
)
from crashd.domain.fleet.keys import CORES, Part
from crashd.domain.fleet.lines import (
    LINE_BYTES,
    REVISION_MAX,
    VERSION_MAX,
    CoreReason,
    parse_labels,
)
from crashd.domain.signals import signal_name
from crashd.errors import FormatError
from crashd.fleet.texts import INDEXED_MAX

WHAT_MAX: Final = 60
_LISTS_OF_BYTES: Final = frozenset({"argv", "environ"})
_OBJECT_LISTS: Final = tuple(key for key, kind in LISTS.items() if kind is dict)
_OBJECTS: Final = (*(key for key, kind in PLAIN_TYPES if kind is dict), *_OBJECT_LISTS)
_REAL_MIN, _REAL_MAX = 1e-300, 1e15
_SECONDS: Final = ("hold_seconds", "queued_seconds", "store_seconds")


class Facts(NamedTuple):
    """What the row of a crash has in its own columns."""

    short: str
    kind: str
    state: str
    disposition: str
    pid: int | None
    uid: int | None
    gid: int | None
    signal: int | None
    comm: str
    exe: str
    unit: str | None
    user_unit: str | None
    slice: str | None
    container_id: str | None
    what: str
    pinned: bool
    stored_bytes: int


class Judged(NamedTuple):
    """A line that is a record, with texts as PostgreSQL takes them."""

    id: str
    revision: int
    labels: Mapping[str, str]
    crashd: str
    time_ns: int
    hostname: str
    signature: str
    build: str
    release: str
    """Of the kernel that crashed."""
    title: str
    core_key: str | None
    log_key: str | None
    core_reason: CoreReason | None
    facts: Facts
    doc: bytes
    """The record as JSON."""


def read_usual(raw: bytes, host: str, title_max: int) -> Judged | None:
    """Judge a line from an object of `host` in one pass; None if it is not a usual one."""
    if len(raw) > LINE_BYTES or not _is_compact(raw):
        return None
    try:
        # text, because the validator does not look at the encoding of what it does not keep
        found: dict[str, Any] = _VALIDATOR.validate_json(raw.decode())
    except (ValidationError, UnicodeDecodeError):
        return None
    if _has_more_keys(raw, found) or _has_odd_number(found):
        return None
    return _judge(found, raw, host, title_max)


def _is_compact(raw: bytes) -> bool:
    """Return whether texts are as PostgreSQL takes them, and each key ends with `":`."""
    return not (b"\\u" in raw or b" :" in raw or b"\t" in raw or b"\n" in raw or b"\r" in raw)


def _has_more_keys(raw: bytes, found: dict[str, Any]) -> bool:
    """Return whether an object may have two equal keys, of which the last one counts, or a key that
    the validator leaves out: more `":` are written than keys were found.
    """
    written, flat = raw.count(b'":'), len(found)
    for value in found.values():
        if type(value) is dict:
            flat += len(value)
    for name in _OBJECT_LISTS:
        for value in found.get(name) or ():
            flat += len(value)
    return written != flat and written != _count_keys(found)


def _count_keys(value: Any) -> int:
    """Count the keys of all objects in a value."""
    members, count = (value.values(), len(value)) if type(value) is dict else (value, 0)
    return count + sum(_count_keys(one) for one in members if type(one) in (dict, list))


def _has_odd_number(found: dict[str, Any]) -> bool:
    """Return whether an object that the model does not look into has a number that may have been
    rounded to nothing, is out of the range of anything, or is none.

    Not the validator's work: where any value may be, it tries each kind in turn, which takes time
    that grows with the square of the depth. 4 MB of brackets took it five minutes.
    """
    waiting = [value for key in _OBJECTS if (value := found.get(key))]
    while waiting:
        value = waiting.pop()
        for member in value.values() if type(value) is dict else value:
            kind = type(member)
            if kind is dict or kind is list:
                waiting.append(member)
            elif kind is float:
                if not _REAL_MIN < member < _REAL_MAX:
                    return True
            elif kind is int and not -(1 << 63) <= member < 1 << 63:
                return True
    return False


def _judge(found: dict[str, Any], raw: bytes, host: str, title_max: int) -> Judged | None:
    files, get = found["fleet"], found.get
    core, log = files["core"], files["log"]
    crash_id, labels = found["id"], _parse_labels(tuple(found["labels"].items()))
    if labels is None or not found["crashd"].isascii():
        return None
    if core is not None and not _is_own(core, host, crash_id, Part.CORE):
        return None
    if log is not None and not _is_own(log, host, crash_id, Part.LOG):
        return None
    auxv, kernel, reason = get("auxv_base64"), get("kernel") or {}, files["reason"]
    if auxv is not None and not _is_base64(auxv):
        return None
    release = kernel.get("release") if found["kind"] == Kind.KERNEL.value else None
    return Judged(
        id=crash_id,
        revision=found["revision"],
        labels=labels,
        crashd=found["crashd"],
        time_ns=found["time_ns"],
        hostname=_cut(get("hostname")),
        signature=get("signature") or "",
        build=_cut(get("build_id")),
        release=release if isinstance(release, str) else "",
        title=_cut(get("title"), title_max),
        core_key=core,
        log_key=log,
        core_reason=None if reason is None else CoreReason(reason),
        facts=_facts(found, kernel),
        doc=raw,
    )


def _facts(found: dict[str, Any], kernel: dict[str, Any]) -> Facts:
    get, number = found.get, found.get("signal")
    return Facts(
        found["id"][-SHORT_ID_LENGTH:],
        found["kind"],
        found["state"],
        found["capture"]["disposition"],
        get("pid"),
        get("uid"),
        get("gid"),
        number,
        _cut(get("comm")),
        _cut(get("exe")),
        _cut(get("unit")) or None,
        _cut(get("user_unit")) or None,
        _cut(get("slice")) or None,
        _cut(get("container_id")) or None,
        _cut(what_of(number, kernel), WHAT_MAX),
        bool(get("pinned")),
        found["core"]["stored_bytes"],
    )


def _cut(value: str | None, longest: int = INDEXED_MAX) -> str:
    """Make the same as `text` of what has neither NUL characters nor lone surrogates."""
    return value[:longest] if value else ""


def what_of(signal: int | None, kernel: Mapping[str, Any]) -> str:
    """Return what happened: the signal's name, or the kind of a kernel panic."""
    return signal_name(signal) if signal is not None else str(kernel.get("panic_kind") or "")


def _is_own(key: str, host: str, crash_id: str, part: Part) -> bool:
    return bool(key.removesuffix(".age") == f"{CORES}{host}/{crash_id}.{part.value}.zst")


def _is_base64(value: str) -> bool:
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        return False
    return True


@lru_cache(1000)
def _parse_labels(labels: tuple[tuple[str, str], ...]) -> dict[str, str] | None:
    try:
        return parse_labels(dict(labels))
    except FormatError:
        return None


# -- the validator ---------------------------------------------------------------------------------

_TEXT: Final = schema.str_schema(strict=True)
_OPTIONAL_TEXT: Final = schema.nullable_schema(_TEXT)
_WHOLE: Final = schema.int_schema(strict=True, ge=-(1 << 63), lt=1 << 63)
_SIZE: Final = schema.int_schema(strict=True, ge=0, lt=1 << 63)
_BOOL: Final = schema.bool_schema(strict=True)
_REAL: Final = schema.float_schema(strict=True, gt=_REAL_MIN, lt=_REAL_MAX, allow_inf_nan=False)
_OBJECT: Final = schema.dict_schema(_TEXT, schema.any_schema(), strict=True)


def _one_of(kind: Any) -> Any:
    return schema.literal_schema([member.value for member in kind])


def _pattern(pattern: str) -> Any:
    return schema.str_schema(strict=True, pattern=rf"\A(?:{pattern})\z")


def _fields(optional: Mapping[str, Any], **required: Any) -> Any:
    """Build the schema of an object with these keys; `_has_more_keys` finds that it has others,
    which costs less than to have them refused here.
    """
    fields = {
        key: schema.typed_dict_field(value, required=False) for key, value in optional.items()
    }
    fields |= {key: schema.typed_dict_field(value) for key, value in required.items()}
    return schema.typed_dict_schema(fields, extra_behavior="ignore", strict=True)


def _optional() -> dict[str, Any]:
    """Return what older versions did not write, or what the model takes without looking."""
    types = {int: _WHOLE, str: _TEXT, bool: _BOOL, dict: _OBJECT}
    found = {key: schema.nullable_schema(types[kind]) for key, kind in PLAIN_TYPES}
    found["signal"] = schema.nullable_schema(
        schema.int_schema(strict=True, ge=-(1 << 31), lt=1 << 31)
    )
    found["fault_address"] = schema.nullable_schema(_pattern("0x[0-9a-f]{1,16}"))
    found |= dict.fromkeys(("time", "signal_name", "cmdline", "environ_age"), _OPTIONAL_TEXT)
    found |= dict.fromkeys(BYTES_KEYS - _LISTS_OF_BYTES, _OPTIONAL_TEXT)
    found["auxv_base64"] = _OPTIONAL_TEXT
    texts = schema.list_schema(_TEXT, strict=True)
    found |= dict.fromkeys(_LISTS_OF_BYTES, schema.nullable_schema(texts))
    objects = schema.list_schema(_OBJECT, strict=True)
    return found | {key: texts if kind is str else objects for key, kind in LISTS.items()}


def _make_validator() -> SchemaValidator:
    capture = _fields(
        dict.fromkeys(_SECONDS, schema.nullable_schema(_REAL))
        | {"identity": _one_of(Identity), "spilled_bytes": _SIZE, "reason": _OPTIONAL_TEXT},
        mode=_one_of(Mode),
        engine=_one_of(Engine),
        disposition=_one_of(Disposition),
    )
    sizes = dict.fromkeys(("size_bytes", "stored_bytes", "resident_bytes"), _SIZE)
    core = _fields(
        {
            "path": schema.nullable_schema(_pattern(CORE_NAME.pattern)),
            "expected_bytes": schema.nullable_schema(_SIZE),
        },
        complete=_BOOL,
        **sizes,
    )
    files = _fields(
        {},
        core=_OPTIONAL_TEXT,
        log=_OPTIONAL_TEXT,
        stored_bytes=_SIZE,
        mini=_BOOL,
        reason=schema.nullable_schema(_one_of(CoreReason)),
    )
    line = _fields(
        _optional(),
        schema=schema.literal_schema([SCHEMA]),
        id=_pattern(ID_PATTERN.pattern),
        kind=_one_of(Kind),
        state=_one_of(State),
        time_ns=_SIZE,
        boot_id=_TEXT,
        capture=capture,
        core=core,
        fleet=files,
        revision=schema.int_schema(strict=True, gt=0, le=REVISION_MAX),
        labels=schema.dict_schema(_TEXT, _TEXT, strict=True),
        crashd=schema.str_schema(strict=True, max_length=VERSION_MAX),
    )
    # keys are the same in every line, and nearly no value is
    settings = schema.CoreConfig(cache_strings="keys")
    return SchemaValidator(line, settings)


_VALIDATOR: Final = _make_validator()
