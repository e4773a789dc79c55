"""systemd's side of a daemon: readiness, watchdog, sockets. Only importer of systemd-python.

Everything works where neither systemd nor its library is, and costs nothing then: libsystemd is
loaded only when the environment says that systemd has something for us.
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
    """Tells systemd how the daemon is, sd_notify(3); does nothing without NOTIFY_SOCKET.

    No method raises, or waits longer than SEND_SECONDS; each tells whether the message went out.

    The datagram is sent here and not by libsystemd, which waits for ever when nobody reads the
    socket: a daemon that has to record a crash of PID 1 must not hang in a greeting to it.
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
        """Say that start-up, or a reload, is complete."""
        return self._send("READY=1", _status(status))

    def status(self, text: str) -> bool:
        """Say in one line how things are; `systemctl status` shows it."""
        return self._send(_status(text))

    def reloading(self) -> bool:
        """Say that a reload begins; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """Say that the daemon is about to end."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Say that the loop still turns; call it each `watchdog_interval_ns`."""
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
                # Not settimeout(): poll(2) calls a socket without a peer writable, whatever the
                # queue of the receiver. The kernel's own timeout waits for that.
                timeout = _TIMEVAL.pack(0, round(SEND_SECONDS * 1e6))
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
                sender.sendto(message.encode(), socket.MSG_NOSIGNAL, target)
        except OSError:
            return False
        return True


def _send_by_library(address: str, message: str) -> bool:
    """Send to an address that is no unix socket (`vsock:CID:PORT`), which libsystemd knows."""
    if os.environ.get("NOTIFY_SOCKET") != address:  # where the library looks
        return False
    try:
        from systemd import daemon

        return bool(daemon.notify(message))
    except (ImportError, OSError):
        return False


def _status(text: str) -> str:
    # A line break would begin another field.
    return "STATUS=" + printable(text)[:STATUS_MAX]


def _number(text: str, maximum: int) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        return None
    number = int(text)
    return number if 0 < number <= maximum else None


def listen_fds(
    environ: MutableMapping[str, str], devices: MutableMapping[str, int] | None = None
) -> dict[str, socket.socket]:
    """Take the sockets that systemd holds for us, sd_listen_fds(3), by FileDescriptorName=.

    Descriptors of character devices, which only a unit's store (FDSTORE) can hold, are put into
    `devices` where that is given.

    The caller owns them; they are CLOEXEC and non-blocking. LISTEN_PID, LISTEN_FDS and
    LISTEN_FDNAMES are removed from `environ`, so that no child takes them for its own. Call it
    once, with the process's own environment, before anything else opens descriptors.

    Raises:
        UnavailableError: what was passed is not a socket, or two have the same name. All that was
            passed is closed.

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
    """Split LISTEN_FDNAMES; `unknown`, as sd_listen_fds_with_names(3) has it, where there is none.

    A text with another number of names than descriptors names none of them.
    """
    names = text.split(":") if text else []
    return names if len(names) == count else ["unknown"] * count


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        passed = socket.socket(fileno=fd)
    except OSError as e:
        raise UnavailableError(
            f"descriptor {fd}, passed by systemd as {name!r}, is no socket: {reason_of(e)}"
        ) from e
    passed.setblocking(False)
    return passed
