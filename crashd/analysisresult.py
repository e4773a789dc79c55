"""The border to the analysis worker: its output is hostile, and becomes Facts or is refused."""

import base64
import json
import re
import zlib
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crashd.domain.cause.analysis import Facts
from crashd.domain.kdump.stream import HEAD_SIZE, Unpacked
from crashd.domain.kdump.symbols import KernelFacts
from crashd.domain.kernellog.printkring import RECORDS_MAX, KernelLog
from crashd.domain.kernellog.printkring import TEXT_MAX as LOG_MAX
from crashd.domain.text import printable
from crashd.errors import FormatError

OUTPUT_MAX = 4 << 20
TEXT_MAX = 4096
ITEMS_MAX = 8192
DEPTH_MAX = 10
PARTS_MAX = 32
_TAIL = 64 << 10
"""Bytes at the end of interrupted output that are searched for its last complete line."""
_LISTS = ("problems", "interpreted")
"""Lists to which several analyzers add."""
_NUMBER_MAX = 1 << 64
_SIZE_MAX = 1 << 63
_FACTS = TypeAdapter(Facts)
_KERNEL_FACTS = TypeAdapter(KernelFacts)
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")
_LOG_TEXT = re.compile(rb"[\x20-\x7e\t\r\n]*")


def parse_report(raw: bytes) -> Facts:
    """Parse and check the worker's output; every text in the result is printable.

    Raises:
        FormatError: it is too long, not JSON, or malformed. Also if the worker itself reports that
            it failed; then the message is the worker's.

    """
    document = _clean(_load_parts(raw), 0)
    _refuse_failed(document)
    if document.get("bits") not in (32, 64):
        raise FormatError("the worker's result is of no known word size")
    try:
        return _FACTS.validate_python(_from_worker(document), extra="forbid")
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"the worker's result is malformed at {where}: {first['msg']}") from e
    except (KeyError, TypeError, AttributeError) as e:
        raise FormatError(f"the worker's result is malformed: {type(e).__name__}") from e


def parse_log_report(raw: bytes) -> KernelLog:
    """Parse and check the log that the worker read from a kernel dump.

    Raises:
        FormatError: as in parse_report().

    """
    document = _load(raw)
    text = document.pop("log", None)
    _refuse_failed(_clean(document, 0))
    if not isinstance(text, str) or len(text) > LOG_MAX or not text.isascii():
        raise FormatError("the worker's result has no log, or an absurd one")
    log = text.encode("ascii")
    if not _LOG_TEXT.fullmatch(log):
        raise FormatError("the worker's result has no log, or an absurd one")
    records, skipped, cut = (document.get(key) for key in ("records", "skipped", "cut"))
    if type(records) is not int or type(skipped) is not int or not isinstance(cut, bool):
        raise FormatError("the worker's result is malformed at records, skipped or cut")
    if not 0 <= records <= RECORDS_MAX or not 0 <= skipped <= 4 * RECORDS_MAX:
        raise FormatError("the worker's result has an absurd number")
    build_id = document.get("build_id")
    if build_id is not None and not (isinstance(build_id, str) and _BUILD_ID.fullmatch(build_id)):
        raise FormatError("the worker's result has an absurd build-id")
    return KernelLog(log, records, skipped, cut, build_id)


def parse_symbols_report(raw: bytes) -> KernelFacts:
    """Parse and check what the worker found in a kernel dump with its vmlinux.

    Raises:
        FormatError: as in parse_report().

    """
    document = _clean(_load(raw), 0)
    _refuse_failed(document)
    document.pop("version", None)
    try:
        return _KERNEL_FACTS.validate_python(document, extra="forbid")
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"the worker's result is malformed at {where}: {first['msg']}") from e


def parse_dump_report(raw: bytes) -> Unpacked:
    """Parse and check what the worker found inside a compressed kernel dump.

    Raises:
        FormatError: as in parse_report().

    """
    document = _load(raw)
    head = document.pop("head", "")
    document = _clean(document, 0)
    _refuse_failed(document)
    size, least, why = document.get("size"), document.get("least"), document.get("why")
    flags = [document.get(key) for key in ("cut", "flattened", "flat_ended")]
    if type(size) is not int or not 0 <= size < _SIZE_MAX or not isinstance(why, str):
        raise FormatError("the worker's result has an absurd size or reason")
    if not all(isinstance(flag, bool) for flag in flags):
        raise FormatError("the worker's result is malformed at cut, flattened or flat_ended")
    cut, flattened, flat_ended = map(bool, flags)
    return Unpacked(cut, why, size, _dump_head(head), flattened, flat_ended, _least(least))


def _dump_head(text: object) -> bytes:
    if not isinstance(text, str) or not text.isascii():
        raise FormatError("the worker's result has no head of a dump")
    try:
        packed = base64.b64decode(text, validate=True)
        return zlib.decompressobj().decompress(packed, HEAD_SIZE)
    except (ValueError, zlib.error) as e:
        raise FormatError("the worker's result has a damaged head of a dump") from e


def _least(value: object) -> tuple[int, str, bool] | None:
    match value:
        case None:
            return None
        case [int(size), str(what), bool(told)] if 0 <= size < _SIZE_MAX:
            return size, what, told
    raise FormatError("the worker's result is malformed at least")


def is_started(raw: bytes) -> bool:
    """Return whether interrupted output has all facts of the first analyzer."""
    return b"\n" in raw


def is_whole(raw: bytes) -> bool:
    """Return whether all analyzers have finished."""
    return raw.endswith(b'"whole":true}\n')


def unfinished(raw: bytes) -> str | None:
    """Return the name of the analyzer in which interrupted output ended; None if it is unknown."""
    for line in reversed(raw[-_TAIL:].split(b"\n")):
        try:
            begun = json.loads(line).get("begun")
        except (AttributeError, ValueError, RecursionError):
            continue
        return printable(begun[:TEXT_MAX]) if isinstance(begun, str) else None
    return None


def _load_parts(raw: bytes) -> dict[str, Any]:
    """Merge the analyzers' lines, without an incomplete last line."""
    lines = raw.split(b"\n", PARTS_MAX)
    document = _load(lines[0]) if len(raw) <= OUTPUT_MAX else _load(raw)
    for line in lines[1:]:
        try:
            more = _load(line)
        except FormatError:
            break
        for key in _LISTS:
            if isinstance(document.get(key, []), list) and isinstance(more.get(key, []), list):
                document[key] = [*document.get(key, []), *more.pop(key, [])]
        # the first line has the native facts: a later analyzer adds to them, and replaces nothing
        document = {**more, **document}
    return document


def _load(raw: bytes) -> dict[str, Any]:
    if len(raw) > OUTPUT_MAX:
        raise FormatError(f"the worker printed {len(raw)} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise FormatError("the worker printed no JSON") from e
    if not isinstance(document, dict):
        raise FormatError("the worker printed no JSON object")
    return document


def _refuse_failed(document: dict[str, Any]) -> None:
    if "failed" in document:
        raise FormatError(str(document["failed"]))


def _clean(value: Any, depth: int) -> Any:
    """Limit every text, number and list, and make texts printable."""
    if depth > DEPTH_MAX:
        raise FormatError("the worker's result is nested too deeply")
    match value:
        case str():
            return printable(value[:TEXT_MAX])
        case bool() | None:
            return value
        case int():
            if not -_NUMBER_MAX < value < _NUMBER_MAX:
                raise FormatError("the worker's result has an absurd number")
            return value
        case float():
            return value
        case list():
            if len(value) > ITEMS_MAX:
                raise FormatError("the worker's result has an absurd list")
            return [_clean(item, depth + 1) for item in value]
        case dict():
            if len(value) > ITEMS_MAX:
                raise FormatError("the worker's result has an absurd object")
            return {
                printable(str(key)[:TEXT_MAX]): _clean(item, depth + 1)
                for key, item in value.items()
            }
    raise FormatError("the worker's result has a value of no known kind")


def _from_worker(document: dict[str, Any]) -> dict[str, Any]:
    """Convert the worker's object into the form of Facts."""
    modules = {module["start"]: module for module in document["modules"]}
    own = (
        "machine", "bits", "modules", "registers", "instruction", "siginfo", "regions",
        "messages", "problems", "handled", "thread_signal", "returned", "package",
    )  # fmt: skip
    return {
        **{key: document[key] for key in own if key in document},
        "threads": [_thread(thread, modules) for thread in document["threads"]],
        "interpreted": document.get("interpreted", []),
    }


def _thread(thread: dict[str, Any], modules: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    return {**thread, "frames": [_frame(frame, modules) for frame in thread["frames"]]}


def _frame(frame: dict[str, Any], modules: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    out = {key: value for key, value in frame.items() if key not in ("start", "sp", "interrupted")}
    module = modules.get(frame["start"])
    out["module"] = module["name"] if module else None
    out["build_id"] = module["build_id"] if module else None
    out["offset"] = frame["pc"] - module["start"] if module else None
    return out
