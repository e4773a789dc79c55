"""A worker process: takes one job after another from the daemon. If the daemon ends, the worker
finishes its current job first.

    daemon                                 worker
      ├── job, entry, core, handler ────────▶│
      │◀──────────── accepted ───────────────┤  the handler has its receipt (a pipe's core only)
      │◀──────────── identified ─────────────┤  the daemon lets go of its descriptors
      │◀──────────── decide ─────────────────┤
      ├── what is kept, buffer, spill ──────▶│  the core is read
      │◀──────────── released ───────────────┤  no process is held any more
      ├── store ────────────────────────────▶│  the core is stored
      │◀──────────── alive, alive, … ────────┤
      │◀──────────── done ───────────────────┤  or failed, or refused

A worker that was killed is continued by its copy (successor.py), which reports "taken over".

Jobs and answers are JSON on a SOCK_SEQPACKET pair, with descriptors attached. A capture that is
killed for lack of memory, or hangs in a read that never returns, costs only that capture (STYLE,
decision a).
"""

import contextlib
import logging
import os
import select
import socket
import time
from dataclasses import replace
from typing import Any

from crashd.base.files import read_space
from crashd.base.messages import receive_message, send_message
from crashd.daemon.capture.capture import Decision, Desk, capture
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pace import POLL_SECONDS, Pace, PaceGate, lower_storer
from crashd.daemon.capture.salvage import salvage
from crashd.daemon.capture.source import small_room
from crashd.daemon.capture.store_core import Grant
from crashd.daemon.capture.timedread import Reader
from crashd.domain.crash.model import Crash, Disposition, State, from_json
from crashd.domain.crash.procfs import parse_status
from crashd.domain.elf.elfcore import CoreHead
from crashd.domain.keep.limiter import is_only_counted
from crashd.domain.keep.site import site_of
from crashd.edge.capture.handoff import Connection
from crashd.edge.capture.incoming import IncomingCore
from crashd.edge.capture.memory import populate
from crashd.edge.capture.process import keep_memory, pidfd_info, read_snapshot
from crashd.errors import CrashdError, reason_of
from crashd.store.entry import Entry
from crashd.store.spool import DIED, SpoolEntry

ANSWER_SECONDS = 60.0
"""How long a worker waits for the daemon's decision on what to keep; the crashed process waits with
it. A worker notices at once when the daemon dies. A daemon that waits for its disk answers later,
and the watchdog (WatchdogSec=) ends a daemon that hangs.
"""
STORE_SECONDS = 600.0
"""How long a worker waits for permission to store its core; then it stores the core anyway."""
ALIVE_NS = 5 * 10**9
"""How often a worker that stores a core reports that it is alive."""
RECEIPT_AT = 1
"""Position of the handler's connection among a capture's descriptors (after the core), until it is
sent.
"""
log = logging.getLogger("crashd.worker")


class _RefusedError(Exception):
    """The handler gave up waiting and keeps the crash."""


def work(channel: socket.socket, gate: PaceGate) -> None:
    """Do jobs until the daemon's end of `channel` is closed; storing waits at `gate`."""
    keep_memory()
    reader = Reader()
    if not select.select([channel], [], [], 0)[0]:
        _rehearse()
    while True:
        try:
            job, descriptors = receive_message(channel)
        except OSError:
            return
        if job is None:
            return
        if "job" not in job:
            continue  # an answer that arrived after its wait was over
        doing = _Job(channel, gate, job, descriptors, reader)
        _do_job(doing)
        if doing.leaves:
            # a thread that hangs in the kernel keeps our descriptors open, the channel included
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            return


def _rehearse() -> None:
    """Do on this process what a capture begins with, so that the first job finds the memory for it
    faulted in: otherwise a tiny process is held 2 ms longer.
    """
    populate(small_room(), lambda _: False)
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(os.getpid())
        try:
            snapshot = read_snapshot(pidfd)
            pidfd_info(pidfd)
        finally:
            os.close(pidfd)
        parse_status(snapshot.get("status", b""))


class _GatePace(Pace):
    """Waits while the daemon's gate is closed, and reports to the daemon every ALIVE_NS that the
    worker is not stuck.
    """

    def __init__(self, job: "_Job", gate: PaceGate) -> None:
        self._job = job
        self._gate = gate
        self._told_ns = time.monotonic_ns()

    def begin(self) -> None:
        lower_storer()

    def step(self) -> None:
        self._tell()
        while self._gate.is_closed:
            time.sleep(POLL_SECONDS)
            self._tell()

    def _tell(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._told_ns >= ALIVE_NS:
            self._told_ns = now_ns
            self._job.tell("alive")


class _Job(Desk):
    """A job on one entry, and the connection to the daemon for it; owns the descriptors."""

    def __init__(
        self,
        channel: socket.socket,
        gate: PaceGate,
        job: dict[str, Any],
        descriptors: list[int],
        reader: Reader,
    ) -> None:
        super().__init__()
        self._channel = channel
        self.pace = _GatePace(self, gate)
        self.what = job
        self.id: str = job["id"]
        self.entry = Entry(self.id, descriptors.pop(0))
        self.descriptors = descriptors
        self.reader = reader
        self.is_successor = False
        """Whether this process is the copy of a worker that was killed."""

    @property
    def leaves(self) -> bool:
        """Return whether this process ends after the job."""
        return self.is_successor or self.reader.stuck > 0

    def tell(self, event: str, **more: object) -> None:
        """Report to the daemon; if the daemon is gone, the entry on disk holds the result."""
        with contextlib.suppress(OSError):
            send_message(self._channel, {"event": event, "id": self.id, **more})

    def end(self, event: str, **more: object) -> None:
        """Report how the job ended, and whether this worker leaves after it: see `work`."""
        self.tell(event, leaves=self.leaves, **more)

    def identified(self) -> None:
        self.tell("identified")

    def taken_over(self) -> None:
        """Report to the daemon, unless the daemon itself has killed the worker."""
        self.is_successor = True
        self.reader.begin_again()
        if self._is_killed():
            os._exit(1)
        pidfd = os.pidfd_open(os.getpid())
        try:
            with contextlib.suppress(OSError):
                event = {"event": "taken over", "id": self.id}
                send_message(self._channel, {**event, "pid": os.getpid()}, (pidfd,))
        finally:
            os.close(pidfd)

    def _is_killed(self) -> bool:
        """Read what the daemon sent to the worker, and return whether it announced its end."""
        self._channel.setblocking(False)
        try:
            while True:
                message, descriptors = receive_message(self._channel)
                for fd in descriptors:
                    os.close(fd)
                if message is None:
                    return False  # the daemon is gone
                if message.get("kill") == self.id:
                    return True
        except OSError:
            return False
        finally:
            self._channel.setblocking(True)

    def decide(self, crash: Crash, head: CoreHead | None, wanted: int) -> Decision:
        """Ask the daemon what to keep; without an answer, keep everything with few resources."""
        site = site_of(crash, head, crash.build_id)
        self.tell("decide", site=site.to_json(), wanted=wanted)
        answer = self._answer("disposition", ANSWER_SECONDS)
        if answer is None:
            return Decision()
        return Decision(
            Disposition(answer["disposition"]),
            answer["reason"],
            Grant(answer["buffer_bytes"], answer["spill_bytes"], answer["spill_leaves_bytes"]),
            answer["credit_bytes"],
            answer["leave_bytes"],
        )

    def released(self, options: Options, read_bytes: int, spilled_bytes: int) -> int:
        """Wait for a compression slot; return the number of threads."""
        self.tell("released", read=read_bytes, spilled=spilled_bytes)
        answer = self._answer("threads", STORE_SECONDS)
        return options.threads if answer is None else int(answer["threads"])

    def _answer(self, key: str, seconds: float) -> dict[str, Any] | None:
        """Wait for the daemon's answer that has `key`; return None if it does not arrive."""
        self._channel.settimeout(seconds)
        try:
            while True:
                answer, descriptors = receive_message(self._channel)
                for fd in descriptors:
                    os.close(fd)
                if answer is None:
                    return None
                if answer.get("answer") == self.id and key in answer:
                    return answer  # not one that arrived after its wait was over
        except OSError:
            return None
        finally:
            self._channel.settimeout(None)


def _do_job(job: _Job) -> None:
    try:
        with job.entry:
            _JOBS[job.what["job"]](job)
    except _RefusedError:
        job.end("refused")
    except Exception as e:  # boundary: one crash must not end the worker
        known = isinstance(e, CrashdError | OSError)
        log.log(
            logging.WARNING if known else logging.ERROR,
            "crash %s: %s failed: %s, salvaging",
            job.id,
            job.what["job"],
            str(e) or reason_of(e),
            exc_info=not known,
        )
        job.end("failed", error=reason_of(e)[:500])
    else:
        job.end("done")
    finally:
        for fd in job.descriptors:
            os.close(fd)


def _capture_pipe(job: _Job) -> None:
    if not job.what["accepted"]:
        with Connection(socket.socket(fileno=job.descriptors.pop(RECEIPT_AT))) as handler:
            if not handler.send_receipt():
                raise _RefusedError
        job.tell("accepted")
    source = job.descriptors.pop(0)
    pidfd = job.descriptors.pop(0) if job.descriptors else None
    _capture(job, IncomingCore.from_pipe(source, pidfd))


def _capture_socket(job: _Job) -> None:
    source, pidfd = job.descriptors
    job.descriptors.clear()
    _capture(job, IncomingCore.from_socket(source, pidfd))


def _capture_spool(job: _Job) -> None:
    with SpoolEntry(job.what["spool"], job.descriptors.pop(0)) as spooled:
        source = spooled.open_core()
        if source is None:
            source = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        incoming = IncomingCore.from_spool(source, spooled.snapshot, spooled.engine())
        free = read_space(job.entry.fd).free_bytes
        fits = os.fstat(source).st_blocks * 512 <= free
        _capture(job, incoming, ending=spooled.ending(), keep_free_bytes=0 if fits else free // 4)


def _capture(
    job: _Job,
    incoming: IncomingCore,
    ending: str | None = None,
    keep_free_bytes: int | None = None,
) -> None:
    """Capture a crash, and correct its record if the handler cut its spooled core for `ending`.

    `keep_free_bytes` replaces the configured limit for a core that replaces its copy in the spool.
    """
    options = Options.from_json(job.what["options"])
    if keep_free_bytes is not None:
        options = replace(options, keep_free_bytes=keep_free_bytes)
    try:
        final = capture(
            from_json(job.what["crash"]),
            job.entry,
            incoming,
            options,
            job,
            with_proc=job.what["with_proc"],
            reader=job.reader,
            refused=job.what.get("refused"),
        )
    finally:
        incoming.release()
    if final.state is State.COMPLETE and (
        ending == DIED or final.capture.disposition is not Disposition.FULL
    ):
        return  # everything wanted was captured
    if ending and not is_only_counted(final):
        final = replace(final, capture=replace(final.capture, reason=f"spooled: {ending}"))
        if final.state is State.COMPLETE:  # full length, but the handler left a part out
            final = replace(final, state=State.TRUNCATED, core=replace(final.core, complete=False))
        if final.state is State.LOST:  # the handler kept the crash, but chose not to keep its core
            final = replace(final, state=State.METADATA_ONLY)
        job.entry.write(final, sync=True)


def _salvage(job: _Job) -> None:
    salvage(job.entry.read(), job.entry, job.what["reason"])


_JOBS = {
    "capture": _capture_pipe,
    "socket": _capture_socket,
    "import": _capture_spool,
    "salvage": _salvage,
}
