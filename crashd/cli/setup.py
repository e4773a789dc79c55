"""`install` and `uninstall`: the kernel's crash handler, registered and given back."""

import argparse
import os
from pathlib import Path

from crashd.cli.context import Context
from crashd.domain.corepattern import build_pattern, build_socket_pattern
from crashd.domain.text import printable
from crashd.edge import sysctl
from crashd.edge.process import signal_is_told
from crashd.errors import PermissionDeniedError

PROC = Path("/proc")
_NAMES = (sysctl.PATTERN, sysctl.PIPE_LIMIT, sysctl.SUID_DUMPABLE)


def install(context: Context, arguments: argparse.Namespace) -> int:
    """Put the handler in place and register it, for good: a daemon that stops leaves it so."""
    del arguments
    _require_root("install")
    from crashd import configfiles
    from crashd.store.handlerfile import install_handler
    from crashd.store.trusted import refuse_untrusted

    paths = context.paths
    refuse_untrusted(paths, handler=True)
    capture = configfiles.load(paths).capture
    pipe_limit = capture.pipe_limit_for(_memory_bytes())
    # as the daemon chooses: the socket by itself only where systemd holds it
    held = paths.kernel_socket.is_socket() and signal_is_told()
    if capture.mode == "socket" or (capture.mode == "auto" and held):
        pattern = build_socket_pattern(str(paths.kernel_socket))
    else:
        pattern = build_pattern(str(paths.handler))
    if install_handler(paths):
        print(f"{printable(str(paths.handler))}: installed")
    before = _values()
    wanted = sysctl.Registration(pattern, pipe_limit, str(paths.handler))
    sysctl.register(wanted, paths.previous_core_pattern, PROC)
    paths.registered_marker.unlink(missing_ok=True)
    _print_changes(before, "registered already")
    return 0


def uninstall(context: Context, arguments: argparse.Namespace) -> int:
    """Put back what the kernel's settings were before `install`, or before the daemon."""
    del arguments
    _require_root("uninstall")
    paths = context.paths
    before = _values()
    outcome = sysctl.restore(str(paths.handler), paths.previous_core_pattern, PROC)
    paths.registered_marker.unlink(missing_ok=True)
    _print_changes(before, outcome)
    return 0


def _require_root(verb: str) -> None:
    if not _is_root():
        raise PermissionDeniedError(f"{verb}: only root may set the kernel's crash handler")


def _is_root() -> bool:
    return os.geteuid() == 0


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _values() -> dict[str, str]:
    return {name: sysctl.read(name, PROC) for name in _NAMES}


def _print_changes(before: dict[str, str], unchanged: str) -> None:
    after = _values()
    changed = [name for name in _NAMES if before[name] != after[name]]
    for name in changed:
        print(f"{name}: {printable(before[name])} -> {printable(after[name])}")
    if not changed:
        print(printable(unchanged))
