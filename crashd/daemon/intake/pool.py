"""The worker pool: processes forked early, from a small parent that does not load the daemon's
heavier parts.

    daemon ──"fork"──▶ nursery (imports the capture path, nothing else; single-threaded)
       ▲                  │ fork
       └── one channel ── worker, worker, …

Forking a threaded process is unsafe, and workers that die must be replaced. So a nursery forks the
workers, and passes the channel of each to the daemon. When the daemon dies, the nursery ends; a
worker finishes its job first.
"""

import contextlib
import functools
import gc
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from crashd.base.messages import receive_message, send_message
from crashd.daemon.capture.pace import PaceGate
from crashd.daemon.capture.worker import work
from crashd.edge.capture.process import set_oom_score
from crashd.errors import UnavailableError, reason_of

WORKER_OOM_SCORE = 500
"""High, so that a memory shortage kills a capture and not the daemon (as in systemd-coredump)."""


class Worker:
    """The daemon's end of one worker; owns the channel and the pidfd."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1  # dead already: the end of its channel reports that
        except OSError as e:  # do not use a worker that we could not kill
            channel.close()
            raise UnavailableError(f"cannot watch a worker: {reason_of(e)}") from e

    def fileno(self) -> int:
        """Return the channel's descriptor, for a selector."""
        return self.channel.fileno()

    def replace(self, pid: int, pidfd: int) -> None:
        """Note that a copy of the worker continues its job; takes ownership of the pidfd."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self.pid, self._pidfd = pid, pidfd

    def kill(self, crash_id: str) -> None:
        """Kill the worker by its pidfd, because its pid may already belong to another process. Its
        copy does not continue the job on this crash.
        """
        with contextlib.suppress(OSError):
            send_message(self.channel, {"kill": crash_id})
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close channel and pidfd: a living worker ends after its job."""
        self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Nursery:
    """Forks workers on request, one at a time; owns the channel to the forking process, and the
    gate that all workers share.
    """

    gone = False
    """Whether the forking process has ended: there will be no new workers."""

    def __init__(self, listen_fds: int = 0) -> None:
        """Fork the nursery. Call before any thread is started and before heavy imports.

        The nursery closes the `listen_fds` sockets, from 3 on, that systemd passed to the daemon.
        """
        self.gate = PaceGate()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            for fd in range(3, 3 + listen_fds):
                os.close(fd)
            _child(functools.partial(_serve, theirs, self.gate))
        theirs.close()
        self.pid = pid
        self._channel = ours
        self._channel.setblocking(False)
        self.asked = False
        """Whether a worker was requested and not taken yet."""

    def fileno(self) -> int:
        """Return the channel's descriptor, which is readable when a worker can be taken."""
        return self._channel.fileno()

    def ask(self) -> None:
        """Ask for a worker, unless one was already requested.

        Raises:
            UnavailableError: the nursery is gone.

        """
        if self.asked:
            return
        try:
            send_message(self._channel, {"fork": True})
        except OSError as e:
            self.gone = isinstance(e, ConnectionError)
            raise UnavailableError(f"cannot fork a worker: {reason_of(e)}") from e
        self.asked = True

    def take(self) -> Worker:
        """Take the worker that was requested.

        Raises:
            UnavailableError: the nursery is gone, or cannot fork.

        """
        try:
            answer, descriptors = receive_message(self._channel)
        except BlockingIOError as e:
            raise UnavailableError("cannot fork a worker: none is there") from e
        except OSError as e:
            self.gone = isinstance(e, ConnectionError)
            raise UnavailableError(f"cannot fork a worker: {reason_of(e)}") from e
        self.asked = False
        if answer is None:
            self.gone = True
        if answer is None or not descriptors:
            why = (answer or {}).get("error", "the nursery is gone or no descriptor is left")
            raise UnavailableError(f"cannot fork a worker: {why}")
        return Worker(answer["pid"], socket.socket(fileno=descriptors[0]))

    def close(self) -> None:
        """End the nursery, and reap it."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _child(run: Callable[[], None]) -> NoReturn:
    """Run a function in a forked child, and never return into the parent's code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon decides; we end when its channel does
    code = 1
    try:
        run()
        code = 0
    finally:
        os._exit(code)


def _serve(channel: socket.socket, gate: PaceGate) -> None:
    """Fork a worker for each request of the daemon, until its end of `channel` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps; the daemon sees a channel end
    gc.collect()
    gc.freeze()  # keeps memory shared with the workers: collections do not write to it
    while True:
        request, _ = receive_message(channel)
        if request is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError as e:
            send_message(channel, {"error": reason_of(e)})
            ours.close()
            theirs.close()
            continue
        if pid == 0:
            channel.close()
            ours.close()
            set_oom_score(WORKER_OOM_SCORE)
            _child(functools.partial(work, theirs, gate))
        theirs.close()
        send_message(channel, {"pid": pid}, (ours.fileno(),))
        ours.close()
