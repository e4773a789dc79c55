"""Register crashd as the kernel's crash handler, and undo that; for the daemon and crashctl.

`registered-by-daemon` in the runtime directory records which of them registered: the daemon undoes
its own registration when it stops; that of `crashctl install` stays, so that crashes are spooled
while the daemon is away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crashd.domain.crash.corepattern import build_pattern, build_socket_pattern
from crashd.domain.crash.model import Mode
from crashd.edge.capture.kernelsock import is_listened_on, kernel_has_socket
from crashd.edge.capture.process import signal_is_told
from crashd.edge.host import sysctl
from crashd.errors import CrashdError
from crashd.store.handlerfile import install_handler
from crashd.store.paths import Paths

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Registered:
    """The result of `register`."""

    pattern: str
    installed: bool
    """The handler was missing, or was another version."""
    changed: bool
    """One of the three sysctls was set."""


@dataclass(frozen=True, slots=True)
class Change:
    """A sysctl whose value has changed."""

    name: str
    before: str
    after: str


def choose_mode(configured: str, *, passed: bool) -> Mode:
    """Choose how the kernel hands over cores; `passed` says whether systemd holds the socket.

    A kernel without coredump sockets (before Linux 6.17) gets the pipe, whatever is configured: it
    would take a pattern with @@ for a file name.

    The socket is faster, because no program is started for each crash, but nothing spools what the
    socket does not take. So crashd chooses it by itself only if systemd holds the socket while the
    daemon is away, and if the kernel reports the signal of a crash that is refused.
    """
    if configured == "pipe" or not kernel_has_socket():
        return Mode.PIPE
    if configured == "socket" or (passed and signal_is_told()):
        return Mode.SOCKET
    return Mode.PIPE


def is_socket_held(paths: Paths) -> bool:
    """Return whether a process listens on the kernel's socket; a dead one leaves the file."""
    return is_listened_on(paths.kernel_socket)


def register(
    paths: Paths, pipe_limit: int, mode: Mode = Mode.PIPE, *, for_good: bool = False
) -> Registered:
    """Install the handler and register it, or the socket; `for_good` outlives the daemon.

    Raises:
        ConfigError: the root makes the pattern too long.
        CrashdError: the system refuses it.

    """
    pattern = build_pattern(str(paths.handler))
    if mode is Mode.SOCKET:
        pattern = build_socket_pattern(str(paths.kernel_socket))
    marked = not for_good and not is_owned(paths)
    if marked:
        paths.registered_marker.touch(mode=0o600)
    try:
        installed = install_handler(paths)
        changed = sysctl.register(
            sysctl.Registration(pattern, pipe_limit, str(paths.handler)),
            paths.previous_core_pattern,
            PROC,
        )
    except CrashdError:
        if marked:
            paths.registered_marker.unlink(missing_ok=True)
        raise
    if for_good:
        paths.registered_marker.unlink(missing_ok=True)
    return Registered(pattern, installed, changed)


def unregister(paths: Paths) -> str:
    """Restore the previous settings, no matter which process registered; return what was done, in
    words.

    Raises:
        CrashdError: a setting could not be restored.

    """
    outcome = sysctl.restore(str(paths.handler), paths.previous_core_pattern, PROC)
    paths.registered_marker.unlink(missing_ok=True)
    return outcome


def install(paths: Paths, pipe_limit: int, mode: Mode) -> tuple[Registered, tuple[Change, ...]]:
    """Register for good, as `crashctl install` does: a daemon that stops leaves it so. Return what
    was done, and the sysctls that it changed.

    Raises:
        CrashdError: as in `register`; or a sysctl cannot be read.

    """
    before = _read_settings()
    done = register(paths, pipe_limit, mode, for_good=True)
    return done, _changes(before)


def uninstall(paths: Paths) -> tuple[str, tuple[Change, ...]]:
    """Restore the previous settings, no matter which process registered; return what was done, in
    words, and the sysctls that it changed.

    Raises:
        CrashdError: as in `unregister`; or a sysctl cannot be read.

    """
    before = _read_settings()
    outcome = unregister(paths)
    return outcome, _changes(before)


def is_owned(paths: Paths) -> bool:
    """Return whether kernel.core_pattern names our handler."""
    try:
        return sysctl.owned(str(paths.handler), PROC)
    except CrashdError:
        return False


def current_pattern() -> str:
    """Read kernel.core_pattern; return "" if it cannot be read."""
    try:
        return sysctl.read(sysctl.PATTERN, PROC)
    except (CrashdError, OSError):
        return ""


def _changes(before: Mapping[str, str]) -> tuple[Change, ...]:
    after = _read_settings()
    return tuple(
        Change(name, value, after[name]) for name, value in before.items() if value != after[name]
    )


def _read_settings() -> dict[str, str]:
    """Read the three sysctls; raises like sysctl.read."""
    return {
        name: sysctl.read(name, PROC)
        for name in (sysctl.PATTERN, sysctl.PIPE_LIMIT, sysctl.SUID_DUMPABLE)
    }
