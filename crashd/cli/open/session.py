"""The session of a debugger in the foreground: the monitor leads it, and starts the debugger.

foreground.py forks the monitor, and relays between the terminal and the pty.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from crashd.domain.text import printable
from crashd.errors import reason_of

_KEPT_VARIABLES = ("TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "TZ", "DEBUGINFOD_URLS")
"""What the debugger of another user inherits of root's environment, besides LC_*: no secrets, no
paths.

DEBUGINFOD_URLS is set only if the administrator allows fetching files (analysis.debuginfod).
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_OF_JOBS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_RESET = (*PASSED_ON, *_OF_JOBS, signal.SIGPIPE, signal.SIGXFSZ)
STATUS = struct.Struct("i")
_CHUNK = 64 << 10
_CANNOT_RUN, _NOT_FOUND = 126, 127  # as in a shell


class User(NamedTuple):
    """The user that a program runs as."""

    uid: int
    gid: int


class Streams(NamedTuple):
    """The debugger's standard descriptors, and those relayed to ours."""

    given: tuple[int, int, int]
    routes: dict[int, int]
    """Maps our end of a pipe or of the pty to our standard descriptor."""
    master: int | None
    """Our end of the pty; None without a pty."""


def restore(before: list[Any]) -> None:
    """Restore the terminal's settings, even from the background, and drop pending input.

    The input may hold the terminal's answers to escape sequences that a hostile program wrote;
    the shell must not get them.
    """
    previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
        termios.tcsetattr(0, termios.TCSAFLUSH, before)
    signal.signal(signal.SIGTTOU, previous)


def lead_session(
    control: socket.socket,
    streams: Streams,
    before: list[Any] | None,
    argv: Sequence[str],
    user: User | None,
    keep: Sequence[int],
) -> NoReturn:
    """Lead the session: start the debugger and report its stops and its end; never returns.

    The monitor ends after crashctl has seen the debugger's end, because a session that loses its
    leader loses output.
    """
    try:
        for number in _RESET:
            signal.signal(number, signal.SIG_IGN)
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        os.setsid()
        terminal = streams.given[0] if streams.master is not None else None
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        child = os.fork()
        if child == 0:
            _exec(argv, user, streams.given, keep, terminal)
        with contextlib.suppress(OSError):  # the child was faster
            os.setpgid(child, child)
        for fd in {*streams.given, *streams.routes} - {0, 1, 2}:
            os.close(fd)
        _watch(control, child, woken)
    except OSError as e:
        _complain(argv, e)
    finally:
        if before is not None:
            restore(before)  # in case crashctl was killed
        os._exit(0)


def _watch(control: socket.socket, child: int, woken: int) -> None:
    """Report the debugger's stops and end, pass signals on, and kill it if crashctl ends."""
    over = False
    with contextlib.suppress(ConnectionError):  # crashctl was killed
        while True:
            if not over:
                pid, status = os.waitpid(child, os.WUNTRACED | os.WNOHANG)
                if pid:
                    over = not os.WIFSTOPPED(status)
                    control.send(STATUS.pack(status))
                    continue
            ready, _, _ = select.select([control.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, _CHUNK)
            if control.fileno() in ready:
                number = control.recv(1)
                if not number:
                    break
                if not over:
                    _signal_group(child, number[0])
    if not over:
        _signal_group(child, signal.SIGKILL)


def _signal_group(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, number)
        if number != signal.SIGTSTP:
            os.killpg(child, signal.SIGCONT)  # a stopped process does not act on the first


def _exec(
    argv: Sequence[str],
    user: User | None,
    given: Sequence[int],
    keep: Sequence[int],
    terminal: int | None,
) -> NoReturn:
    """Become the debugger; never returns."""
    try:
        os.setpgid(0, 0)
        if terminal is not None:
            os.tcsetpgrp(terminal, os.getpid())
        for changed in (*_RESET, signal.SIGCHLD):
            signal.signal(changed, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for number, fd in enumerate(given):
            os.dup2(fd, number)
        environ: Mapping[str, str] = os.environ
        if user is not None:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            environ = build_environ(os.environ, *_account(user.uid))
            _enter_again()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in keep:
                with contextlib.suppress(OSError):  # the listing's own descriptor
                    os.close(fd)
        for fd in keep:
            os.set_inheritable(fd, True)
        os.execve(argv[0], list(argv), environ)
    except OSError as e:
        _complain(argv, e)
        os._exit(_NOT_FOUND if isinstance(e, FileNotFoundError) else _CANNOT_RUN)
    finally:
        os._exit(_CANNOT_RUN)


def _complain(argv: Sequence[str], error: OSError) -> None:
    what = printable(f"crashctl: cannot run {argv[0]}: {reason_of(error)}") + "\n"
    os.write(2, what.encode("utf-8", "backslashreplace"))


def _enter_again() -> None:
    """Change to / if this user may not enter the current directory."""
    try:
        os.chdir(os.getcwd())
    except OSError:
        os.chdir("/")


def build_environ(environ: Mapping[str, str], name: str | None, home: str) -> dict[str, str]:
    """Build the environment of another user's program out of root's."""
    kept = {k: v for k, v in environ.items() if k in _KEPT_VARIABLES or k.startswith("LC_")}
    who = {} if name is None else {"USER": name, "LOGNAME": name}
    return {**kept, **who, "HOME": home, "PATH": _PATH}


def _account(uid: int) -> tuple[str | None, str]:
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return None, "/nonexistent"
    return entry.pw_name, entry.pw_dir
