"""The handler's fields, validated: what is known of a crash before the process is read.

`CoreMeta.from_fields` is the only constructor for every source (the handler's argv, the hand-over
message, a spool entry's `meta`), so that all sources get the same checks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crashd.domain.crash.model import Identity
from crashd.errors import FormatError

_FIELDS_MAX = 64
_VALUE_MAX = 4096
_PID_MAX = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
_TIME_NS_MAX = (1 << 63) - 1  # the limit of ktime_t and of the index: the year 2262


def parse_fields(raw: bytes) -> dict[str, bytes]:
    """Parse `KEY=value NUL …`.

    Raises:
        FormatError: an item lacks `=`, a key occurs twice, there are too many or too long items, or
            the final NUL is missing.
    """
    fields: dict[str, bytes] = {}
    if not raw.endswith(b"\0"):
        raise FormatError("hand-over message does not end in NUL")
    for item in raw[:-1].split(b"\0"):
        key, equals, value = item.partition(b"=")
        if not equals or (not key.isalnum() and not key.replace(b"_", b"").isalnum()):
            raise FormatError(f"hand-over message has the item {item[:40]!r}")
        name = key.decode("ascii")
        if name in fields:
            raise FormatError(f"hand-over message has {name!r} twice")
        if len(value) > _VALUE_MAX or len(fields) >= _FIELDS_MAX:
            raise FormatError(f"hand-over message is too large at {name!r}")
        fields[name] = value
    return fields


@dataclass(frozen=True, slots=True)
class CoreMeta:
    """The handler's fields, checked; None where the kernel was not asked or sent nonsense."""

    token: str
    time_ns: int
    """Wall clock at the crash, ns: the handler's clock if it agrees with %t to 5 s, else %t."""
    seen_boottime_ns: int | None
    """CLOCK_BOOTTIME when the handler started."""
    identity: Identity
    ns_pid: int | None
    thread_comm: bytes
    signal: int | None
    pid: int | None
    tid: int | None
    uid: int | None
    gid: int | None
    rlimit_core: int | None
    dumpable: int | None
    nodename: bytes
    malformed: tuple[str, ...]
    """One text for each argument that is missing or malformed."""

    @staticmethod
    def from_fields(fields: Mapping[str, bytes], now_ns: int) -> "CoreMeta":
        """Validate the fields; a malformed one becomes None and is named in `malformed`."""
        malformed: list[str] = []
        asked = "pst" if "socket" not in fields else ""  # the kernel's socket passes no arguments

        def number(key: str, low: int, high: int) -> int | None:
            text = fields.get(key)
            if text is None or text == b"":
                if key in asked:
                    malformed.append(f"%{key} is missing")
                return None
            if len(text) > 20 or not text.isdigit() or not low <= int(text) <= high:
                malformed.append(f"%{key} is {text[:40]!r}")
                return None
            return int(text)

        token = fields.get("token", b"").decode("ascii", "replace")
        if not token or len(token) > 64 or not token.replace("-", "").isalnum():
            raise FormatError(f"hand-over token {token[:64]!r} is malformed")
        seconds = number("t", 1, _TIME_NS_MAX // 10**9)
        seen_ns = number("seen_ns", 1, _TIME_NS_MAX)
        time_ns = seen_ns or now_ns
        if seconds is not None and abs(seconds * 10**9 - time_ns) > 5 * 10**9:
            time_ns = seconds * 10**9
        try:
            identity = Identity(fields.get("identity", b"none").decode("ascii", "replace"))
        except ValueError:
            identity = Identity.NONE
        return CoreMeta(
            token=token,
            time_ns=time_ns,
            seen_boottime_ns=number("boottime_ns", 1, _U64),
            identity=identity,
            ns_pid=number("p", 1, _PID_MAX),
            thread_comm=fields.get("e", b"")[:64],
            signal=number("s", 1, 64),
            pid=number("P", 1, _PID_MAX),
            tid=number("I", 1, _PID_MAX),
            uid=number("u", 0, _U32),
            gid=number("g", 0, _U32),
            rlimit_core=number("c", 0, _U64),
            dumpable=number("d", 0, 2),
            nodename=fields.get("h", b"")[:64],
            malformed=tuple(malformed),
        )
