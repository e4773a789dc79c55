"""`install` and `uninstall`: register crashd as the kernel's crash handler, and undo it."""

import argparse
import os
from collections.abc import Iterable

from crashd import registration
from crashd.cli.context import Context
from crashd.domain.crash.model import Mode
from crashd.domain.text import printable
from crashd.edge.capture.process import memory_total_bytes
from crashd.edge.host import sysctl
from crashd.errors import PermissionDeniedError


def install(context: Context, arguments: argparse.Namespace) -> int:
    """Install the handler and register it permanently: it stays when the daemon stops."""
    del arguments
    _require_root("install")
    from crashd.configuration import files as configfiles
    from crashd.store.trusted import refuse_untrusted

    paths = context.paths
    refuse_untrusted(paths, handler=True)
    capture = configfiles.load(paths).capture
    mode = registration.choose_mode(capture.mode, passed=registration.is_socket_held(paths))
    if capture.mode == "socket" and mode is Mode.PIPE:
        context.warn("this kernel has no coredump socket (new in Linux 6.17), using the pipe")
    pipe_limit = capture.pipe_limit_for(memory_total_bytes())
    done, changes = registration.install(paths, pipe_limit, mode)
    if done.installed:
        print(f"{printable(str(paths.handler))}: installed")
    _print(changes)
    if not changes:
        print("already registered")
    return 0


def uninstall(context: Context, arguments: argparse.Namespace) -> int:
    """Restore the kernel's settings from before `install`, or from before the daemon started."""
    del arguments
    _require_root("uninstall")
    outcome, changes = registration.uninstall(context.paths)
    _print(changes)
    if sysctl.PATTERN not in {change.name for change in changes}:
        print(printable(outcome))
    return 0


def _require_root(verb: str) -> None:
    if not _is_root():
        raise PermissionDeniedError(f"{verb}: only root can change the kernel's crash handler")


def _is_root() -> bool:
    return os.geteuid() == 0


def _print(changes: Iterable[registration.Change]) -> None:
    for change in changes:
        print(f"{change.name}: {printable(change.before)} -> {printable(change.after)}")
