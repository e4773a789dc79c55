"""Holding kernel.core_pattern while the daemon runs, and giving it back.

Who registered is remembered by `registered-by-daemon` in the runtime directory: what the daemon
took, it gives back when it stops; what `crashctl install` took stays, so that crashes are spooled
while the daemon is away.
"""

import logging
from pathlib import Path

from crashd.domain.corepattern import build_pattern, build_socket_pattern
from crashd.domain.model import Mode
from crashd.edge import sysctl
from crashd.edge.kernelsock import kernel_has_socket
from crashd.edge.process import signal_is_told
from crashd.errors import CrashdError
from crashd.store.handlerfile import install_handler
from crashd.store.paths import Paths

log = logging.getLogger("crashd.registration")

PROC = Path("/proc")


def choose_mode(configured: str, *, passed: bool) -> Mode:
    """Choose how the kernel hands over cores; `passed` tells whether systemd holds the socket.

    Without a program started for each crash is faster, but nobody spools what the socket does not
    take: so by itself only where systemd holds it while the daemon is away, and where the kernel
    tells the signal of a crash that is refused.
    """
    if configured == "pipe":
        return Mode.PIPE
    if not kernel_has_socket():
        if configured == "socket":
            log.error("this kernel has no coredump socket (Linux 6.17), using the pipe")
        return Mode.PIPE
    if configured == "socket" or (passed and signal_is_told()):
        return Mode.SOCKET
    return Mode.PIPE


def register(paths: Paths, pipe_limit: int, mode: Mode = Mode.PIPE) -> bool:
    """Put the handler in place and register it, or the socket; False when this system does not let
    us.

    Raises:
        ConfigError: the root makes the pattern too long.

    """
    pattern = build_pattern(str(paths.handler))
    if mode is Mode.SOCKET:
        pattern = build_socket_pattern(str(paths.kernel_socket))
    ours = is_owned(paths)
    if not ours:
        paths.registered_marker.touch(mode=0o600)
    try:
        if install_handler(paths):
            log.info("handler installed as %s", paths.handler)
        changed = sysctl.register(
            sysctl.Registration(pattern, pipe_limit, str(paths.handler)),
            paths.previous_core_pattern,
            PROC,
        )
    except CrashdError as e:
        hint = f" ({e.hint})" if e.hint else ""
        log.warning("not registered as core_pattern: %s%s, ignoring", e, hint)
        if not ours:
            paths.registered_marker.unlink(missing_ok=True)
        return False
    if changed:
        log.info("kernel.core_pattern is %s", pattern)
    return True


def unregister(paths: Paths) -> None:
    """Give back what this daemon, or one before it that was killed, took."""
    if not paths.registered_marker.exists():
        return
    try:
        outcome = sysctl.restore(str(paths.handler), paths.previous_core_pattern, PROC)
    except CrashdError as e:
        log.error("kernel.core_pattern was not given back: %s", e)
        return
    paths.registered_marker.unlink(missing_ok=True)
    log.info("registration given back: %s", outcome)


def is_owned(paths: Paths) -> bool:
    """Tell whether kernel.core_pattern names our handler."""
    try:
        return sysctl.owned(str(paths.handler), PROC)
    except CrashdError:
        return False


def current_pattern() -> str:
    """Read kernel.core_pattern; empty where it cannot be read."""
    try:
        return sysctl.read("kernel.core_pattern", PROC)
    except (CrashdError, OSError):
        return ""
