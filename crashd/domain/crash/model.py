"""The crash record: one frozen value for process and kernel crashes, and its JSON form.

`crash.json` (the sidecar in each store entry), the index, the control socket and `crashctl --json`
all use `Crash`; `to_json` and `from_json` are the only conversions. Bytes that the crashed process
chose stay bytes inside. In JSON, UTF-8 is text; any other value is backslash-escaped text, with the
exact bytes under `<key>_base64`. Over 400 lines, because fields and JSON must change together.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, TypeVar, cast

from crashd.domain.crash.keys import BOOT_UNKNOWN as BOOT_UNKNOWN
from crashd.domain.crash.keys import CORE_NAME_TEXT, ID_TEXT
from crashd.domain.crash.keys import LIST_KEYS as LIST_KEYS
from crashd.domain.crash.keys import SCHEMA as SCHEMA
from crashd.domain.crash.keys import SHORT_ID_LENGTH as SHORT_ID_LENGTH
from crashd.domain.crash.keys import time_text as time_text
from crashd.domain.crash.kinds import Kind as Kind
from crashd.domain.crash.kinds import State as State
from crashd.domain.signals import signal_name
from crashd.domain.text import shell_join
from crashd.errors import FormatError, NewerError

SEQUENCE_TIME_MAX = 1 << 62
"""The year 2116: keeps the numbers of crashes away from their limit, 2**63, whatever the clock."""

ID_PATTERN = re.compile(ID_TEXT)
CORE_NAME = re.compile(CORE_NAME_TEXT)
_SHORT_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class DropReason(StrEnum):
    """Why something was dropped, or took the long way."""

    QUEUE_FULL = "queue_full"
    SPOOL_INVALID = "spool_invalid"
    STORE_ERROR = "store_error"
    WORKER_DIED = "worker_died"
    DEADLINE = "deadline"
    KERNEL_REFUSED = "kernel_refused"
    """The kernel did not hand a crash over, as its log says."""
    MALFORMED_HANDOFF = "malformed_handoff"
    NOTICE = "notice"
    """A crash was not reported to the journal, a hook or the webhook."""
    KERNEL_FLOOD = "kernel_flood"
    """The running kernel reported more trouble than is recorded in an hour."""


class Mode(StrEnum):
    """How the crash reached crashd."""

    PIPE = "pipe"
    SOCKET = "socket"
    SPOOL = "spool"
    KDUMP = "kdump"
    PSTORE = "pstore"
    """From the part of a dead kernel's log that the firmware kept."""
    KMSG = "kmsg"
    """From the log of the running kernel, which survived the crash."""
    NONE = "none"
    """It did not reach crashd: known only from the kernel's log."""


class Engine(StrEnum):
    """The engine that read the memory."""

    NONE = "none"
    STREAM = "stream"
    MEMORY = "memory"


class Disposition(StrEnum):
    """How much of a crash was to be kept."""

    FULL = "full"
    MINI = "mini"
    METADATA = "metadata"


class Identity(StrEnum):
    """How certain it is that `/proc/PID` was the crashed process."""

    KERNEL = "kernel"
    """The kernel gave the pidfd (%F, or the socket's peer): race-free."""
    OPENED = "opened"
    """A pidfd opened by number after the crash, of a process found dumping core: almost certain."""
    NONE = "none"
    """Unknown; nothing was read from `/proc`."""


@dataclass(frozen=True, slots=True)
class Capture:
    """How a crash was captured."""

    mode: Mode = Mode.PIPE
    engine: Engine = Engine.NONE
    disposition: Disposition = Disposition.FULL
    identity: Identity = Identity.NONE
    hold_ns: int | None = None
    """From the handler's start to the release of the crashed process."""
    queued_ns: int | None = None
    """Of `hold_ns`, the time until a worker began with the crash."""
    store_ns: int | None = None
    """From the release until the core was stored."""
    spilled_bytes: int = 0
    """Of the core, what waited on disk, uncompressed, until it was stored."""
    reason: str | None = None
    """Why the core is not complete; None if it is."""


@dataclass(frozen=True, slots=True)
class Core:
    """A stored core."""

    path: str | None = None
    """File name in the entry's directory; None without a core."""
    size_bytes: int = 0
    """Uncompressed size of the kept part."""
    stored_bytes: int = 0
    """Size on disk."""
    resident_bytes: int = 0
    """The part of `size_bytes` outside long runs of zeros."""
    expected_bytes: int | None = None
    """Size by the ELF program headers; None if they could not be read."""
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash, with the fields of DESIGN section 8; None means unknown.

    The crashed process chose `argv`, `environ`, `open_fds` and parts of the raw `/proc` texts.
    """

    id: str
    kind: Kind
    state: State
    time_ns: int
    """Wall clock at the crash, ns since the epoch."""
    boot_id: str
    """32 hex digits, /proc/sys/kernel/random/boot_id without dashes."""
    hostname: bytes = b""
    """This host's own node name."""
    token: str = ""
    """Made by the handler for this crash; a crash that arrives twice has the same token."""
    sequence: int | None = None
    """The order of admission, whatever the wall clock does (`next_sequence`)."""
    boottime_ns: int | None = None
    """CLOCK_BOOTTIME at the crash: orders the crashes of a boot, whatever the wall clock does."""
    pid: int | None = None
    """Thread-group id in the initial pid namespace."""
    tid: int | None = None
    """Crashing thread in the initial pid namespace."""
    ns_pid: int | None = None
    """Thread-group id in the process's own pid namespace."""
    uid: int | None = None
    """Real user id in the initial user namespace."""
    gid: int | None = None
    dumpable: int | None = None
    """%d of core(5): 1 is ordinary, 2 means that only root may read the core."""
    owner_uid: int | None = None
    """The user who may read this crash besides root; None: root only (SECURITY B1)."""
    rlimit_core: int | None = None
    """Soft RLIMIT_CORE, bytes; 2**64-1 is unlimited."""
    signal: int | None = None
    si_code: int | None = None
    fault_address: int | None = None
    sender_pid: int | None = None
    """Sender of the signal, if a process sent it (si_code <= 0)."""
    sender_uid: int | None = None
    comm: bytes = b""
    """Name of the process (of its main thread)."""
    thread_comm: bytes = b""
    """Name of the crashing thread (%e)."""
    exe: bytes = b""
    argv: tuple[bytes, ...] = ()
    cwd: bytes = b""
    root: bytes = b""
    """Root directory of the process as seen from the host; `/` unless chroot or container."""
    nodename: bytes = b""
    """Node name in the process's UTS namespace (%h); a container chooses it."""
    unit: str | None = None
    user_unit: str | None = None
    slice: str | None = None
    session: str | None = None
    cgroup: str | None = None
    container_id: str | None = None
    container_runtime: str | None = None
    pod_uid: str | None = None
    pod: Mapping[str, Any] | None = None
    """`{namespace, name, container, node}` of Kubernetes, as far as the kubelet's files say."""
    mount_ns: int | None = None
    """Inode of the process's mount namespace; None for the host's own, and if unknown."""
    user_ns: int | None = None
    """The same for its user namespace."""
    build_id: str | None = None
    """Build-id of the executable in hex, from the core itself."""
    package_name: str | None = None
    """Of the package that the executable is from; known once the crash is analysed."""
    package_version: str | None = None
    package_source: str | None = None
    """Who says so: `dpkg`, `rpm`, or `note`, the executable itself."""
    capture: Capture = field(default_factory=Capture)
    core: Core = field(default_factory=Core)
    signature: str | None = None
    title: str = ""
    explanation: str | None = None
    analysis: Mapping[str, Any] | None = None
    """`{state, reason, cause, seconds, cpu_seconds, peak_bytes, warnings, time}` of the analysis
    which found most; `time` is that of the newest one, and `kept` says why the newest found less
    than it."""
    pinned: bool = False
    evicted: Mapping[str, Any] | None = None
    """`{reason, time}` of a tombstone: the limit for which the core was deleted, and when."""
    kernel: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    """Unusual facts about this crash, one line each."""
    threads: tuple[Mapping[str, Any], ...] = ()
    """`{tid, name, pc, crashed}`; filled from the core's notes."""
    frames: tuple[Mapping[str, Any], ...] = ()
    environ: tuple[bytes, ...] | None = None
    """`NAME=value` as scrubbed by [privacy]; None if dropped or unreadable."""
    maps: bytes | None = None
    limits: bytes | None = None
    status: bytes | None = None
    """/proc/PID/status. Its Groups and CapEff, with uid and gid, decide which files are opened for
        the crash; without it the process counts as having no groups."""
    mountinfo: bytes | None = None
    auxv: bytes | None = None
    open_fds: bytes | None = None
    log: tuple[str, ...] = ()
    """The end of a dead kernel's log."""
    report: tuple[str, ...] = ()
    """The lines of the kernel's log that report this crash."""

    @property
    def short_id(self) -> str:
        """The id's last group: enough to name a crash by hand."""
        return self.id[-SHORT_ID_LENGTH:]

    @property
    def cmdline(self) -> bytes:
        """The arguments as one line, quoted for a shell."""
        return shell_join(self.argv)


_BYTES: tuple[str, ...]
_BYTES = ("hostname", "comm", "thread_comm", "exe", "cwd", "root", "nodename", "maps", "limits")
_BYTES += ("status", "mountinfo", "auxv", "open_fds")
_BYTES_LISTS = ("argv", "environ")
BYTES_KEYS = frozenset({*_BYTES, *_BYTES_LISTS})
"""Keys whose exact bytes may be under `<key>_base64`."""
_ALWAYS_BASE64 = frozenset({"auxv"})
_PLAIN_TEXT = """
token sequence boottime_ns pid tid ns_pid uid gid dumpable owner_uid rlimit_core signal si_code
sender_pid sender_uid unit user_unit slice session cgroup container_id container_runtime
pod_uid pod mount_ns user_ns build_id package_name package_version package_source
signature title explanation analysis pinned evicted kernel
"""
_PLAIN = tuple(_PLAIN_TEXT.split())
_get_plain_values = attrgetter(*_PLAIN)
_UNKNOWN = dict.fromkeys(_PLAIN)
LISTS = {"warnings": str, "threads": dict, "frames": dict, "log": str, "report": str}
_NUMBERS_TEXT = """
sequence boottime_ns pid tid ns_pid uid gid dumpable owner_uid rlimit_core signal si_code
sender_pid sender_uid mount_ns user_ns
"""
_NUMBERS = frozenset(_NUMBERS_TEXT.split())


def build_id_text(time_ns: int, boot_id: str, pid: int, random: int) -> str:
    """Build a crash id from values that the kernel vouches for, and 40 random bits."""
    stamp = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y%m%dt%H%M%S")
    letters = []
    random, first = divmod(random, 26)
    letters.append(_SHORT_ALPHABET[first])
    for _ in range(SHORT_ID_LENGTH - 1):
        random, digit = divmod(random, 36)
        letters.append(_SHORT_ALPHABET[digit])
    return f"{stamp}-{boot_id[:8]}-{max(pid, 0)}-{''.join(letters)}"


def next_sequence(last: int, time_ns: int) -> int:
    """Return the number of the next crash: the wall clock, but always more than `last`."""
    return max(last + 1, min(time_ns, SEQUENCE_TIME_MAX))


def is_text(key: str, value: bytes) -> bool:
    """Return whether bytes are exact as text in JSON; otherwise `put_bytes` adds base64."""
    return key not in _ALWAYS_BASE64 and not _not_utf8(value)


def put_bytes(out: dict[str, Any], key: str, value: bytes | None) -> None:
    """Put bytes into a JSON object: as text, and also as base64 if the text is not exact."""
    if value is None:
        out[key] = None
        return
    try:
        if key in _ALWAYS_BASE64:
            raise UnicodeDecodeError("utf-8", value, 0, 0, "binary by nature")
        out[key] = value.decode()
    except UnicodeDecodeError:
        if key not in _ALWAYS_BASE64:
            out[key] = value.decode("utf-8", "backslashreplace")
        out[key + "_base64"] = base64.b64encode(value).decode()


def put_bytes_list(out: dict[str, Any], key: str, values: tuple[bytes, ...] | None) -> None:
    """Put several byte strings into a JSON object, like `put_bytes`."""
    if values is None:
        out[key] = None
        return
    try:
        out[key] = [v.decode() for v in values]
    except UnicodeDecodeError:
        out[key] = [v.decode("utf-8", "backslashreplace") for v in values]
        out[key + "_base64"] = [base64.b64encode(v).decode() for v in values]


def _not_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


def to_json(crash: Crash) -> dict[str, Any]:
    """Build the JSON object of `crash`: every key of DESIGN section 8, and internal ones."""
    out: dict[str, Any] = {"schema": SCHEMA}
    out["id"] = crash.id
    out["kind"] = crash.kind.value
    out["state"] = crash.state.value
    out["time"] = time_text(crash.time_ns)
    out["time_ns"] = crash.time_ns
    out["boot_id"] = crash.boot_id
    out.update(zip(_PLAIN, _get_plain_values(crash), strict=True))
    out["signal_name"] = None if crash.signal is None else signal_name(crash.signal)
    out["fault_address"] = None if crash.fault_address is None else hex(crash.fault_address)
    for key in _BYTES:
        put_bytes(out, key, getattr(crash, key))
    for key in _BYTES_LISTS:
        put_bytes_list(out, key, getattr(crash, key))
    out["cmdline"] = crash.cmdline.decode("utf-8", "backslashreplace")
    for key in LISTS:
        out[key] = list(getattr(crash, key))
    capture, core = crash.capture, crash.core
    out["capture"] = {
        "engine": capture.engine.value,
        "mode": capture.mode.value,
        "hold_seconds": _seconds(capture.hold_ns),
        "queued_seconds": _seconds(capture.queued_ns),
        "store_seconds": _seconds(capture.store_ns),
        "spilled_bytes": capture.spilled_bytes,
        "disposition": capture.disposition.value,
        "identity": capture.identity.value,
        "reason": capture.reason,
    }
    out["core"] = {
        "path": core.path,
        "size_bytes": core.size_bytes,
        "stored_bytes": core.stored_bytes,
        "resident_bytes": core.resident_bytes,
        "expected_bytes": core.expected_bytes,
        "complete": core.complete,
    }
    return out


def _seconds(time_ns: int | None) -> float | None:
    return None if time_ns is None else time_ns / 1e9


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(document: Mapping[str, Any]) -> bytes:
    """Encode a record's JSON object as in crash.json.

    A lone surrogate becomes the text of its escape, because `from_json` rejects surrogates.
    """
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text).encode()


def from_json(document: object) -> Crash:
    """Parse the JSON object that `to_json` builds; it may come from any source.

    Raises:
        NewerError: the schema is newer.
        FormatError: it is not such an object, or an id, state or number is malformed.
    """
    if not isinstance(document, dict):
        raise FormatError("crash record is not a JSON object")
    try:
        if document["schema"] > SCHEMA:
            raise NewerError(f"crash record has schema {document['schema']}, newer than {SCHEMA}")
        return _from_object(document)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
        raise FormatError(f"crash record is malformed: {type(e).__name__}: {e}") from e


def _from_object(doc: dict[str, Any]) -> Crash:
    """Build a crash from its object; from_json() turns every error into a FormatError."""
    crash_id = doc["id"]
    if not isinstance(crash_id, str) or not ID_PATTERN.fullmatch(crash_id):
        raise FormatError(f"crash id {crash_id!r} is not of the form TIME-BOOT-PID-RANDOM")
    values = _get_known(doc)
    values["pinned"] = bool(doc.get("pinned"))
    values["title"] = doc.get("title") or ""
    values["token"] = doc.get("token") or ""
    for key, exact, empty in _BYTES_PLAN:
        values[key] = _get_bytes(doc, key, exact, empty)
    for key in _BYTES_LISTS:
        values[key] = _get_bytes_list(doc, key)
    values["argv"] = values["argv"] or ()
    for key in LISTS:
        values[key] = _get_list(doc, key)
    address = doc.get("fault_address")
    capture, core = doc["capture"], doc["core"]
    return Crash(
        id=crash_id,
        kind=_member(Kind, doc["kind"]),
        state=_member(State, doc["state"]),
        time_ns=_number("time_ns", doc["time_ns"], 0, 2**63),
        boot_id=str(doc["boot_id"]),
        fault_address=None
        if address is None
        else _number("fault_address", int(address, 16), 0, 2**64),
        capture=Capture(
            mode=_member(Mode, capture["mode"]),
            engine=_member(Engine, capture["engine"]),
            disposition=_member(Disposition, capture["disposition"]),
            identity=_member(Identity, capture.get("identity", "none")),
            hold_ns=_nanoseconds(capture.get("hold_seconds")),
            queued_ns=_nanoseconds(capture.get("queued_seconds")),
            store_ns=_nanoseconds(capture.get("store_seconds")),
            spilled_bytes=_number("spilled_bytes", capture.get("spilled_bytes", 0), 0, 2**63),
            reason=_get_plain(capture, "reason"),
        ),
        core=Core(
            path=_safe_name(core.get("path")),
            size_bytes=_number("size_bytes", core["size_bytes"], 0, 2**63),
            stored_bytes=_number("stored_bytes", core["stored_bytes"], 0, 2**63),
            resident_bytes=_number("resident_bytes", core["resident_bytes"], 0, 2**63),
            expected_bytes=None
            if core.get("expected_bytes") is None
            else _number("expected_bytes", core["expected_bytes"], 0, 2**63),
            complete=bool(core["complete"]),
        ),
        **values,
    )


_KINDS = {"pinned": bool, **dict.fromkeys(("analysis", "evicted", "kernel", "pod"), dict)}
PLAIN_TYPES = tuple((key, int if key in _NUMBERS else _KINDS.get(key, str)) for key in _PLAIN)
_OPTIONAL_BYTES = frozenset({"maps", "limits", "status", "mountinfo", "auxv", "open_fds"})
_BYTES_PLAN = tuple(
    (key, f"{key}_base64", None if key in _OPTIONAL_BYTES else b"") for key in _BYTES
)
_NUMBER_MIN, _NUMBER_END = -(2**63), 2**64
_E = TypeVar("_E", bound=StrEnum)


def _member(kind: type[_E], value: Any) -> _E:
    """Return a member by its value; a lookup takes a fifth of the time of a call of the class."""
    found = kind._value2member_map_.get(value)
    return kind(value) if found is None else cast(_E, found)


def _safe_name(name: object) -> str | None:
    """Accept only a plain file name, so that a sidecar cannot lead to another path."""
    if name is None:
        return None
    if not isinstance(name, str) or not CORE_NAME.fullmatch(name):
        raise FormatError(f"core path {name!r} is not a plain file name")
    return name


def _number(key: str, value: object, low: int, end: int) -> int:
    if type(value) is not int or not low <= value < end:
        raise FormatError(f"crash record has no valid number in {key}: {value!r:.40}")
    return value


def _get_known(doc: dict[str, Any]) -> dict[str, Any]:
    """Return the values of _PLAIN; the usual ones cost no call: an indexer reads millions."""
    values: dict[str, Any] = _UNKNOWN.copy()
    for key, kind in PLAIN_TYPES:
        value = doc.get(key)
        if value is None:
            continue
        is_usual = type(value) is kind
        if is_usual and kind is str:
            value.isascii() or value.encode()  # fails now on a lone surrogate, not later
        elif not is_usual or (kind is int and not _NUMBER_MIN <= value < _NUMBER_END):
            value = _get_plain(doc, key)
        values[key] = value
    return values


def _get_plain(doc: dict[str, Any], key: str) -> Any:
    value = doc.get(key)
    if value is None:
        return None
    if key in _NUMBERS:
        return _number(key, value, _NUMBER_MIN, _NUMBER_END)
    kind = _KINDS.get(key, str)
    if not isinstance(value, kind):
        raise FormatError(f"crash record has a {type(value).__name__} in {key}")
    if isinstance(value, str):
        value.encode()  # fails now on a lone surrogate, not later in the index or on a terminal
    return value


def _get_list(doc: dict[str, Any], key: str) -> tuple[Any, ...]:
    values = doc.get(key) or []
    if values == []:
        return ()
    if not isinstance(values, list) or not all(isinstance(v, LISTS[key]) for v in values):
        raise FormatError(f"crash record has no list of {LISTS[key].__name__} in {key}")
    return tuple(values)


def _get_bytes(doc: dict[str, Any], key: str, exact_key: str, empty: bytes | None) -> bytes | None:
    exact = doc.get(exact_key)
    if exact is not None:
        return base64.b64decode(exact, validate=True)
    text = doc.get(key)
    return empty if text is None else bytes(text.encode())


def _get_bytes_list(doc: dict[str, Any], key: str) -> tuple[bytes, ...] | None:
    exact = doc.get(key + "_base64")
    if exact is not None:
        return tuple(base64.b64decode(v, validate=True) for v in exact)
    texts = doc.get(key)
    return None if texts is None else tuple(t.encode() for t in texts)
