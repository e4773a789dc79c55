"""Talks to systemd: readiness, watchdog, sockets. Only importer of systemd-python.

Everything also works without systemd and its library, at no cost: libsystemd is loaded only if the
environment requires it.
"""

import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import Mapping, MutableMapping

from crashd.domain.crash.corepattern import SUN_PATH_MAX
from crashd.domain.text import printable
from crashd.errors import UnavailableError, reason_of

SEND_SECONDS = 0.2
STATUS_MAX = 400
"""Characters of a STATUS= line."""
LISTEN_FDS_START = 3
LISTEN_FDS_MAX = 64
_USEC_MAX = 2**53
_TIMEVAL = struct.Struct("ll")


class Notifier:
    """Reports the daemon's state to systemd, sd_notify(3); does nothing without NOTIFY_SOCKET.

    No method raises, or waits longer than SEND_SECONDS; each returns whether the message was sent.

    The datagram is not sent by libsystemd, because that waits forever if nothing reads the socket:
    a daemon that must record a crash of PID 1 must not wait for PID 1.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_interval_ns: int | None = None
        """Half of WatchdogSec=, as sd_watchdog_enabled(3) advises; None without a watchdog."""
        usec = _number(environ.get("WATCHDOG_USEC", ""), _USEC_MAX)
        pid = environ.get("WATCHDOG_PID", "")
        if self._address and usec and pid in ("", str(os.getpid())):
            self.watchdog_interval_ns = usec * 1000 // 2

    def ready(self, status: str) -> bool:
        """Report that start-up or a reload is complete."""
        return self._send("READY=1", _status(status))

    def status(self, text: str) -> bool:
        """Set the one-line status that `systemctl status` shows."""
        return self._send(_status(text))

    def reloading(self) -> bool:
        """Report that a reload begins; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """Report that the daemon is about to end."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Report that the loop is alive; call this every `watchdog_interval_ns`."""
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        if not self._address:
            return False
        message = "\n".join(lines)
        if self._address[0] not in "/@":
            return _send_by_library(self._address, message)
        name = os.fsencode(self._address)
        if len(name) > SUN_PATH_MAX:
            return False
        target = b"\0" + name[1:] if name.startswith(b"@") else name
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # Not settimeout(): poll(2) reports a socket without a peer as writable even if the
                # receiver's queue is full. SO_SNDTIMEO does wait for the queue.
                timeout = _TIMEVAL.pack(0, round(SEND_SECONDS * 1e6))
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
                sender.sendto(message.encode(), socket.MSG_NOSIGNAL, target)
        except OSError:
            return False
        return True


def _send_by_library(address: str, message: str) -> bool:
    """Send through libsystemd to an address that is not a unix socket (`vsock:CID:PORT`)."""
    if os.environ.get("NOTIFY_SOCKET") != address:  # the only address that the library uses
        return False
    try:
        from systemd import daemon

        return bool(daemon.notify(message))
    except (ImportError, OSError):
        return False


def _status(text: str) -> str:
    # printable() also removes line breaks, which would begin another field.
    return "STATUS=" + printable(text)[:STATUS_MAX]


def _number(text: str, maximum: int) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        return None
    number = int(text)
    return number if 0 < number <= maximum else None


def listen_fds(
    environ: MutableMapping[str, str], devices: MutableMapping[str, int] | None = None
) -> dict[str, socket.socket]:
    """Return the sockets that systemd passes, sd_listen_fds(3), by FileDescriptorName=.

    Descriptors of character devices, which only a unit's store (FDSTORE) can hold, are put into
    `devices`, if that is given.

    The caller owns the sockets; they are CLOEXEC and non-blocking. LISTEN_PID, LISTEN_FDS and
    LISTEN_FDNAMES are removed from `environ`, so that no child uses them. Call this once, with the
    process's own environment, before anything else opens descriptors.

    Raises:
        UnavailableError: a descriptor is not a socket, or two have the same name. All passed
            descriptors are closed.
    """
    fds, pid, names = (
        environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    )
    environ.pop("LISTEN_PIDFDID", None)  # systemd 259 and later
    count = _number(fds, LISTEN_FDS_MAX)
    if count is None or pid != str(os.getpid()):
        return {}
    passed = list(range(LISTEN_FDS_START, LISTEN_FDS_START + count))
    for fd in passed:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    found: dict[str, socket.socket] = {}
    try:
        for fd, name in zip(passed, _names(names, count), strict=True):
            if name in found:
                raise UnavailableError(
                    f"systemd passed two sockets named {name!r}",
                    hint="give each FileDescriptorName= in crashd.socket to one Listen…= only",
                )
            if devices is not None and stat.S_ISCHR(os.fstat(fd).st_mode):
                devices[name] = fd
                continue
            found[name] = _adopt(fd, name)
    except UnavailableError:
        for taken in found.values():
            taken.detach()
        for fd in passed:
            with contextlib.suppress(OSError):
                os.close(fd)
        raise
    return found


def _names(text: str, count: int) -> list[str]:
    """Split LISTEN_FDNAMES; without it every name is `unknown`, see sd_listen_fds_with_names(3).

    If the number of names differs from that of the descriptors, the names are ignored.
    """
    names = text.split(":") if text else []
    return names if len(names) == count else ["unknown"] * count


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        passed = socket.socket(fileno=fd)
    except OSError as e:
        raise UnavailableError(
            f"descriptor {fd}, passed by systemd as {name!r}, is not a socket: {reason_of(e)}"
        ) from e
    passed.setblocking(False)
    return passed
