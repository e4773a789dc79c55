"""Runs a debugger in the foreground, in its own session, and as another user if asked.

    terminal ── crashctl ── pty ── debugger
                   └── socket ── monitor (leads the session, waits for the debugger)

A core can take over its debugger, and the debugger must then not reach the terminal of root's
shell: a process with that controlling terminal can type into it (TIOCSTI). So crashctl relays
between the terminal and a pty, as sudo does with use_pty. If standard input or output is not a
terminal, the debugger gets no controlling terminal, and a pipe in place of each standard descriptor
that is a terminal.
"""

import contextlib
import fcntl
import os
import select
import selectors
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from crashd.cli.open.session import PASSED_ON, STATUS, Streams, User, lead_session, restore
from crashd.errors import UnsupportedError, reason_of

_CHUNK = 64 << 10
_TYPED_MAX = 1 << 20
"""Typed bytes kept for a debugger that does not read them."""
_QUIET_SECONDS = 0.5
"""How long to wait for output after the debugger's end, if a child of it holds the pty open."""


def run(argv: Sequence[str], user: User | None, keep: Sequence[int] = ()) -> int:
    """Run a program that inherits the descriptors `keep`; return its exit status as a shell would.

    Raises:
        UnsupportedError: no pty can be opened.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = termios.tcgetattr(0) if os.isatty(0) and os.isatty(1) else None
    with contextlib.ExitStack() as stack:
        streams = _open_streams(stack, user, terminal=before is not None)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        with theirs:
            monitor = os.fork()
            if monitor == 0:
                ours.close()
                lead_session(theirs, streams, before, argv, user, keep)
        stack.callback(os.waitpid, monitor, 0)
        stack.callback(ours.close)  # runs before waitpid, and makes the monitor end
        for fd in {*streams.given} - {0, 1, 2}:
            os.close(fd)
        status = _Relay(ours, streams, before).run()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _open_streams(stack: contextlib.ExitStack, user: User | None, *, terminal: bool) -> Streams:
    """Replace each standard descriptor that is a terminal: by the pty, a pipe or /dev/null."""
    given, routes, master = [0, 1, 2], {}, None
    if terminal:
        try:
            master, slave = os.openpty()
        except OSError as e:
            raise UnsupportedError(f"cannot make a pseudo-terminal: {reason_of(e)}") from e
        stack.callback(os.close, master)
        os.set_blocking(master, False)
        _copy_size(slave)
        termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(0))
        os.fchmod(slave, 0o600)
        if user is not None:
            os.fchown(slave, user.uid, user.gid)
        routes[master] = 1
    for number in range(3):
        if not os.isatty(number):
            continue
        if terminal:
            given[number] = slave
        elif number == 0:
            given[0] = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        else:
            end, given[number] = os.pipe()
            stack.callback(os.close, end)
            routes[end] = number
    return Streams((given[0], given[1], given[2]), routes, master)


def _copy_size(fd: int) -> None:
    """Give a pty the size of the terminal."""
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(fd, termios.TIOCSWINSZ, size)


class _Relay:
    """Passes bytes, signals and stops between the terminal and the debugger."""

    def __init__(self, control: socket.socket, streams: Streams, before: list[Any] | None) -> None:
        self._control = control
        self._routes = streams.routes
        self._master = streams.master
        self._before = before
        self._typed = bytearray()
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Relay until the debugger ends; return its wait status."""
        with self._selector, self._signals():
            try:
                self._make_raw()
                status = self._relay()
                self._drain()
                return status
            finally:
                if self._before is not None:
                    restore(self._before)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def pass_on(number: int, _frame: FrameType | None) -> None:
            self._signal(number)

        def resize(_number: int, _frame: FrameType | None) -> None:
            if self._master is not None:
                _copy_size(self._master)

        wanted = {number: pass_on for number in PASSED_ON} | {signal.SIGWINCH: resize}
        if self._before is not None:
            wanted[signal.SIGTSTP] = pass_on  # the debugger's stop then stops us
        previous = {number: signal.signal(number, act) for number, act in wanted.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):  # the monitor has ended
            self._control.send(bytes([number]))

    def _make_raw(self) -> None:
        if self._before is not None:
            tty.setraw(0, termios.TCSADRAIN)

    def _relay(self) -> int:
        self._selector.register(self._control, selectors.EVENT_READ)
        for fd in self._routes:
            self._selector.register(fd, selectors.EVENT_READ)
        if self._master is not None:
            self._selector.register(0, selectors.EVENT_READ)
        while True:
            for key, events in self._selector.select():
                if key.fileobj is self._control:
                    status = self._hear()
                    if status is not None:
                        return status
                elif key.fd == 0:
                    self._type(_read(0))
                elif events & selectors.EVENT_READ and not self._show(key.fd):
                    self._selector.unregister(key.fd)
                elif events & selectors.EVENT_WRITE:
                    self._type(None)

    def _hear(self) -> int | None:
        """Receive a message of the monitor; return the wait status if the debugger has ended."""
        try:
            raw = self._control.recv(STATUS.size)
        except ConnectionError:
            raw = b""
        if not raw:
            return int(signal.SIGKILL)  # the monitor was killed
        status: int = STATUS.unpack(raw)[0]
        if not os.WIFSTOPPED(status):
            return status
        if self._before is not None:
            self._suspend(self._before)
        return None

    def _suspend(self, before: list[Any]) -> None:
        """Stop our whole job, as Ctrl-Z does; once continued, continue the debugger."""
        restore(before)
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(0, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._make_raw()
        if self._master is not None:
            _copy_size(self._master)
        self._signal(signal.SIGCONT)

    def _type(self, typed: bytes | None) -> None:
        """Write typed bytes, new and pending, to the pty as far as it accepts them."""
        if self._master is None:
            return
        if typed == b"":
            self._selector.unregister(0)
            self._signal(signal.SIGHUP)
            return
        self._typed += typed or b""
        try:
            del self._typed[: os.write(self._master, self._typed)]
        except BlockingIOError:
            pass  # the pty's queue is full
        except OSError:
            self._typed.clear()  # the debugger has closed the pty
        del self._typed[_TYPED_MAX:]  # a terminal with a full queue drops input too
        waiting = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._typed else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(self._master, waiting)

    def _show(self, fd: int) -> bool:
        """Copy available output; return False at the end of the stream."""
        data = memoryview(_read(fd))
        more = bool(data)
        with contextlib.suppress(OSError):  # the terminal is gone: drop the rest
            while data:
                data = data[os.write(self._routes[fd], data) :]
        return more

    def _drain(self) -> None:
        """Copy the output that is still in the pipes or the pty."""
        poll = select.poll()
        for fd in self._routes:
            poll.register(fd, select.POLLIN)
        left = len(self._routes)
        while left and (ready := poll.poll(_QUIET_SECONDS * 1000)):
            for fd, _ in ready:
                if not self._show(fd):
                    poll.unregister(fd)
                    left -= 1


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:  # EIO: the other side of the pty is closed
        return b""
