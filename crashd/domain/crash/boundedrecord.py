"""Limits the size of an encoded record, so that every written record can be read again.

A crashed process chooses how long its maps, arguments and names are, and how many bytes of JSON
each of their bytes becomes (six for a control character or a byte that is not UTF-8). So the
encoded record is measured and cut, the least useful fields first, and a warning in the record names
the cut fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from crashd.domain.crash.model import Crash, encode, is_text, put_bytes, put_bytes_list, to_json
from crashd.domain.text import shell_join

RECORD_BYTES: Final = 4 << 20
"""Limit for a crash with a core. The kernel allows as much for the names of all mappings in a core
(MAX_FILE_NOTE_SIZE, fs/binfmt_elf.c)."""
MINI_BYTES: Final = 512 << 10
"""Limit for a crash with a mini core."""
METADATA_BYTES: Final = 64 << 10
"""Limit for a crash without a core; a crash loop makes many of these."""
LEAST_BYTES: Final = 16 << 10
"""Limit if space runs out: enough for identity, names, and what happened."""

_BULKY = ("maps", "mountinfo", "open_fds", "environ", "auxv", "limits", "status")
_LINES = ("log", "threads", "frames", "report")
_ORDER = (*_BULKY, *_LINES, "argv")
"""The order of cuts, the least useful field first."""
_NAMES_TEXT = """
analysis kernel evicted pod cwd root nodename exe comm thread_comm hostname cgroup slice session
user_unit unit container_id container_runtime pod_uid package_name package_version package_source
explanation title signature build_id token boot_id
"""
_NAMES = tuple(_NAMES_TEXT.split())
"""Fields cut if that is not enough, each to its share."""
_TEXT_PART: Final = 64
_MAPPING_PART: Final = 16
_WARNINGS_PART: Final = 16
_NOTE_BYTES: Final = 512
_WORST: Final = 7
"""The most bytes of JSON that one byte can become, base64 included."""
_PIECE_BYTES: Final = 256 << 10
_STEP_BYTES: Final = 2 << 10
"""A longer field is cut at a multiple of this."""
_PRECISION: Final = 16
"""A cut field may be a 16th shorter than necessary, because each tried length costs an encoding."""


def bounded(crash: Crash, max_bytes: int = RECORD_BYTES) -> tuple[Crash, bytes]:
    """Cut a record to `max_bytes` (LEAST_BYTES or more) when encoded; return it and its encoding.

    A record that fits is returned unchanged.
    """
    cuts: dict[str, str] = {}
    whole, crash = crash, _shorten(crash, max_bytes, cuts)
    crash = _presume(crash, whole, max_bytes, cuts)
    raw = encode(to_json(crash))
    if len(raw) <= max_bytes and not cuts:
        return crash, raw
    noted = _note(crash, cuts, max_bytes)
    raw = encode(to_json(noted))
    for name in _ORDER:
        if len(raw) <= max_bytes:
            return noted, raw
        before = getattr(crash, name)
        size = _cost(name, before)
        after = _cut(name, before, size - (len(raw) - max_bytes) - _NOTE_BYTES)
        if after != before:
            cuts[name] = f"{name} after {len(after)} of {_length(getattr(whole, name))}"
            crash = replace(crash, **{name: after})
            noted = _note(crash, cuts, max_bytes)
            raw = encode(to_json(noted))
    if len(raw) <= max_bytes:
        return noted, raw
    noted = _note(_cut_names(crash, cuts, max_bytes), cuts, max_bytes)
    return noted, encode(to_json(noted))


def slim(crash: Crash) -> Crash:
    """Drop the fields that a row of the index does not need, to keep queued records small."""
    empty: dict[str, Any] = {**dict.fromkeys(_BULKY), **dict.fromkeys(_LINES, ())}
    return replace(crash, **empty)


def _shorten(crash: Crash, max_bytes: int, cuts: dict[str, str]) -> Crash:
    """Cut fields longer than the whole limit, before encoding makes them six times as long."""
    for name in _BULKY:
        value = getattr(crash, name)
        if isinstance(value, bytes) and len(value) > max_bytes:
            cuts[name] = f"{name} after {max_bytes} of {_length(value)}"
            crash = replace(crash, **{name: _prefix(value, max_bytes)})
    return crash


def _presume(crash: Crash, whole: Crash, max_bytes: int, cuts: dict[str, str]) -> Crash:
    """Cut fields that are certainly too large, one by one: encoding all takes much memory. The most
    useful ones take their part first.
    """
    if sum(len(getattr(crash, name) or b"") for name in _BULKY) <= max_bytes // _WORST:
        return crash
    left = max_bytes
    for name in reversed(_BULKY):
        before = getattr(crash, name)
        after = _cut(name, before, left)
        left -= _cost(name, after)
        if after != before:
            cuts[name] = f"{name} after {len(after)} of {_length(getattr(whole, name))}"
            crash = replace(crash, **{name: after})
    return crash


def _cut_names(crash: Crash, cuts: dict[str, str], max_bytes: int) -> Crash:
    for name in _NAMES:
        before = getattr(crash, name)
        part = _MAPPING_PART if isinstance(before, Mapping) else _TEXT_PART
        after = _cut(name, before, max_bytes // part)
        if after != before:
            cuts[name] = name
            crash = replace(crash, **{name: after})
    reason = _cut("reason", crash.capture.reason, max_bytes // _TEXT_PART)
    return replace(crash, capture=replace(crash.capture, reason=reason))


def _note(crash: Crash, cuts: dict[str, str], max_bytes: int) -> Crash:
    """Add the warning that names the cuts, after as many of the other warnings as fit."""
    kept = _cut("warnings", crash.warnings, max_bytes // _WARNINGS_PART)
    if kept != crash.warnings:
        cuts["warnings"] = f"warnings after {len(kept)} of {_length(crash.warnings)}"
    if not cuts:
        return crash
    note = f"cut to keep this record small: {', '.join(cuts.values())}"
    return replace(crash, warnings=(*kept, note[:_NOTE_BYTES]))


def _length(value: bytes | tuple[Any, ...]) -> str:
    return f"{len(value)} {'bytes' if isinstance(value, bytes) else 'items'}"


def _cost(name: str, value: Any) -> int:
    """Return the bytes that a field adds to the encoded record."""
    out: dict[str, Any] = {}
    if isinstance(value, bytes) and len(value) > _PIECE_BYTES:  # a part of it in memory
        starts = range(0, len(value), _PIECE_BYTES)
        return sum(_cost(name, value[start : start + _PIECE_BYTES]) for start in starts)
    if isinstance(value, bytes):
        put_bytes(out, name, value)
    elif name in ("argv", "environ"):
        put_bytes_list(out, name, value)
        if name == "argv":
            out["cmdline"] = shell_join(value).decode("utf-8", "backslashreplace")
    else:
        out[name] = value
    return len(encode(out))


def _cut(name: str, value: Any, max_bytes: int) -> Any:
    """Cut a field until it adds at most `max_bytes` to the encoded record, or is empty."""
    if isinstance(value, bytes) and len(value) > _STEP_BYTES:
        return _cut_long(name, value, max_bytes)
    if value is None or _cost(name, value) <= max_bytes:
        return value
    if isinstance(value, Mapping):
        return _cut_mapping(name, value, max_bytes)
    kept = _longest(value, max_bytes, lambda part: _cost(name, part) <= max_bytes)
    if isinstance(value, tuple) and isinstance(next(iter(value[len(kept) :]), None), bytes):
        last = value[len(kept)]
        end = _longest(last, max_bytes, lambda part: _cost(name, (*kept, part)) <= max_bytes)
        return (*kept, end) if end else kept
    return kept


def _cut_long(name: str, value: bytes, max_bytes: int) -> bytes:
    """Cut bytes as `_cut` does, but encode no more of them than fits: what a process chose may take
    half a second a MiB.
    """
    spent = _cost(name, b"")
    twice = not is_text(name, value)
    for start in range(0, len(value), _STEP_BYTES):
        step = value[start : start + _STEP_BYTES]
        spent += _text_cost(name, step) + (len(step) * 4 // 3 + 4 if twice else 0)
        if spent > max_bytes:
            return bytes(_prefix(value, start) if start else _cut(name, step, max_bytes))
    return value


def _text_cost(name: str, value: bytes) -> int:
    """Return the bytes that bytes take as text; none if they are always base64."""
    out: dict[str, Any] = {}
    put_bytes(out, name, value)
    return len(encode({name: out[name]})) if name in out else 0


def _cut_mapping(name: str, value: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, member in value.items():
        if _cost(name, {**kept, key: member}) <= max_bytes:
            kept[key] = member
    return kept


def _longest(value: Any, max_bytes: int, fits: Callable[[Any], bool]) -> Any:
    """Return a long prefix of `value` that fits; an empty one if nothing fits.

    A prefix that fits has at most `max_bytes` bytes or items, because each becomes at least one
    byte.
    """
    low, high = 0, max(0, min(len(value), max_bytes))
    while high - low > max(1, low // _PRECISION):
        middle = (low + high) // 2
        if fits(_prefix(value, middle)):
            low = middle
        else:
            high = middle
    return _prefix(value, low)


def _prefix(value: Any, length: int) -> Any:
    """Return a prefix; one of bytes ends at the end of a line or of a character."""
    start = value[:length]
    if not isinstance(start, bytes) or length >= len(value):
        return start
    line = start.rfind(b"\n") + 1
    if line > length // 2:
        return start[:line]
    try:
        start.decode()
    except UnicodeDecodeError as e:
        if e.reason == "unexpected end of data":
            return start[: e.start]
    return start
