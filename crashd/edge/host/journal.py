"""Writes crashes to the journal with systemd-coredump's fields, so that `coredumpctl` shows them.

It uses the native protocol and not libsystemd, which waits forever if nothing reads the socket.
Source: systemd's "Native Journal Protocol" page, src/coredump/coredump.c, coredumpctl.c;
sd-messages.h.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from crashd.base.files import write_all
from crashd.base.messages import send_packet
from crashd.domain.crash.model import Crash, State
from crashd.domain.signals import signal_name
from crashd.domain.text import printable
from crashd.errors import UnavailableError, reason_of

SOCKET = Path("/run/systemd/journal/socket")
MESSAGE_ID = "fc2e22bc6ee647b6b90729ab34a250b1"
"""SD_MESSAGE_COREDUMP."""
EXPLAINED_ID = "7c0e3f64b1a94d52a3f28d0c95be6e17"
"""MESSAGE_ID of what an analysis found; coredumpctl takes systemd's for another crash."""
SEND_SECONDS = 1.0
SOCKET_BYTES = 8 << 20
"""The send buffer that libsystemd asks for, too."""
FIELD_MAX = 64 << 10
"""Bytes of a field; the journal accepts more, but no reader needs it."""
FRAMES_MAX = 32
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def send(fields: Mapping[str, bytes], path: Path = SOCKET, seconds: float = SEND_SECONDS) -> None:
    """Send one entry; if the journal is full, wait at most `seconds`, which may be 0.

    Raises:
        UnavailableError: there is no journal, or it does not accept the entry.
    """
    raw = b"".join(_encode(name, value[:FIELD_MAX]) for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            sender.settimeout(seconds)
            sender.connect(os.fspath(path))
            try:
                sender.send(raw)
            except OSError as e:
                if e.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                # too large for a datagram
                _send_file(sender, raw)
    except OSError as e:
        raise UnavailableError(f"the journal does not accept entries: {reason_of(e)}") from e


def _encode(name: str, value: bytes) -> bytes:
    """Encode a field; several lines are prefixed with their length, and so cannot forge fields."""
    key = name.encode("ascii")
    if b"\n" in value:
        return key + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return key + b"=" + value + b"\n"


def _send_file(sender: socket.socket, raw: bytes) -> None:
    fd = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        write_all(fd, raw)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        send_packet(sender, b"", (fd,))
    finally:
        os.close(fd)


def build_fields(crash: Crash, core_path: Path | None) -> dict[str, bytes]:
    """Build the entry of a process crash."""
    told = {
        "MESSAGE_ID": MESSAGE_ID,
        "PRIORITY": "2",  # LOG_CRIT, like systemd-coredump
        "SYSLOG_IDENTIFIER": "crashd",
        "MESSAGE": _message(crash),
        "CRASHD_ID": crash.id,
        "CRASHD_STATE": crash.state.value,
        "CRASHD_DISPOSITION": crash.capture.disposition.value,
        "CRASHD_TITLE": printable(crash.title),
        "CRASHD_SIGNATURE": crash.signature,
        "CRASHD_EXPLANATION": crash.explanation,
        "CRASHD_BUILD_ID": crash.build_id,
        "CRASHD_CONTAINER_ID": crash.container_id,
        "COREDUMP_PID": crash.pid,
        "COREDUMP_TID": crash.tid,
        "COREDUMP_UID": crash.uid,
        "COREDUMP_GID": crash.gid,
        "COREDUMP_SIGNAL": crash.signal or 0,
        "COREDUMP_SIGNAL_NAME": signal_name(crash.signal) if crash.signal else None,
        "COREDUMP_CODE": crash.si_code,
        "COREDUMP_TIMESTAMP": crash.time_ns // 1000,
        "COREDUMP_RLIMIT": crash.rlimit_core,
        "COREDUMP_OWNER_UID": crash.owner_uid,
        "COREDUMP_SLICE": crash.slice,
        "COREDUMP_SESSION": crash.session,
        "COREDUMP_UNIT": crash.unit,
        "COREDUMP_USER_UNIT": crash.user_unit,
        "COREDUMP_CGROUP": crash.cgroup,
        "COREDUMP_FILENAME": None if core_path is None else os.fspath(core_path),
        "COREDUMP_TRUNCATED": "1" if crash.state is State.TRUNCATED else None,
    }
    fields = {name: str(value).encode() for name, value in told.items() if value is not None}
    raw = {
        "COREDUMP_HOSTNAME": crash.hostname,
        "COREDUMP_COMM": crash.comm,
        "COREDUMP_THREAD_NAME": crash.thread_comm,
        "COREDUMP_EXE": crash.exe,
        "COREDUMP_CMDLINE": crash.cmdline,
        "COREDUMP_CWD": crash.cwd,
        "COREDUMP_ROOT": crash.root,
        "COREDUMP_ENVIRON": b"\n".join(crash.environ or ()),
        "COREDUMP_PROC_STATUS": crash.status,
        "COREDUMP_PROC_MAPS": crash.maps,
        "COREDUMP_PROC_LIMITS": crash.limits,
        "COREDUMP_PROC_MOUNTINFO": crash.mountinfo,
        "COREDUMP_OPEN_FDS": crash.open_fds,
    }
    return fields | {name: value for name, value in raw.items() if value}


def build_explanation(crash: Crash) -> dict[str, bytes]:
    """Build the second entry of a process crash: what the analysis found, with the stack."""
    who = f"{crash.pid} ({printable(crash.comm)})"
    text = f"Process {who}: {printable(crash.title)}"
    if crash.explanation:
        text += f". {printable(crash.explanation)}"
    told = {
        "MESSAGE_ID": EXPLAINED_ID,
        "PRIORITY": "2",
        "SYSLOG_IDENTIFIER": "crashd",
        "MESSAGE": "\n".join([text, *_stack(crash)]),
        "CRASHD_ID": crash.id,
        "CRASHD_TITLE": printable(crash.title),
        "CRASHD_SIGNATURE": crash.signature,
        "CRASHD_EXPLANATION": crash.explanation,
        "COREDUMP_PACKAGE_NAME": crash.package_name,
        "COREDUMP_PACKAGE_VERSION": crash.package_version,
        "COREDUMP_PID": crash.pid,
        "COREDUMP_UID": crash.uid,
        "COREDUMP_UNIT": crash.unit,
        "COREDUMP_USER_UNIT": crash.user_unit,
        "OBJECT_SYSTEMD_UNIT": crash.unit,  # journalctl -u shows it with the unit's own entries
    }
    fields = {name: str(value).encode() for name, value in told.items() if value is not None}
    raw = {"COREDUMP_COMM": crash.comm, "COREDUMP_EXE": crash.exe}
    return fields | {name: value for name, value in raw.items() if value}


def _message(crash: Crash) -> str:
    """Build the message; most readers see only its first line."""
    return "\n".join([_headline(crash), *_stack(crash)])


def _headline(crash: Crash) -> str:
    who = printable(crash.comm)
    uid = "" if crash.uid is None else f" of user {crash.uid}"
    dumped = "crashed" if crash.state is State.LOST else "dumped core"  # what people grep for
    text = f"Process {crash.pid} ({who}){uid} {dumped}: {printable(crash.title)}"
    if crash.state is State.LOST:
        return f"{text}. Its core is lost: {printable(crash.capture.reason or '')}"
    if crash.explanation:
        text += f". {printable(crash.explanation)}"
    return text + (f" (core {crash.state.value})" if crash.state is not State.COMPLETE else "")


def _stack(crash: Crash) -> Iterator[str]:
    if crash.frames:
        yield ""
        yield "Stack of the crashed thread:"
    for number, frame in enumerate(crash.frames[:FRAMES_MAX]):
        function = printable(str(frame.get("function") or frame.get("pc") or "n/a"))
        module = printable(str(frame.get("module") or "n/a"))
        place = (
            f" at {printable(str(frame['file']))}:{frame.get('line')}" if frame.get("file") else ""
        )
        yield f"#{number:<2} {function} ({module}){place}"
