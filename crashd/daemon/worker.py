"""A worker process: takes one job after another from the daemon, and outlives it to finish the
last.

Jobs and answers are JSON on a SOCK_SEQPACKET pair, descriptors beside them. A capture that is
killed for memory, or hangs in a read that never returns, costs that capture alone (STYLE, decision
a).
"""

import contextlib
import json
import logging
import os
import socket
import struct
from dataclasses import replace
from typing import Any

from crashd.daemon.capture import Options, capture
from crashd.daemon.salvage import salvage
from crashd.domain.model import State
from crashd.edge.handoff import Connection
from crashd.edge.incoming import IncomingCore
from crashd.errors import CrashdError
from crashd.store.entry import Entry
from crashd.store.spool import SpoolEntry

MESSAGE_MAX = 1 << 16
_FDS_MAX = 4
RECEIPT_AT = 1
"""Position of the handler's connection among a capture's descriptors (after the core), until it is
sent.
"""
log = logging.getLogger("crashd.worker")


class _RefusedError(Exception):
    """The handler gave up waiting and keeps the crash."""


def send_message(
    channel: socket.socket, document: dict[str, Any], descriptors: tuple[int, ...] = ()
) -> None:
    """Send one message with its descriptors, which stay the caller's."""
    rights = [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))
    ]
    channel.sendmsg([json.dumps(document).encode()], rights if descriptors else [])


def receive_message(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message; the caller owns the descriptors. None at the end."""
    data, ancillary, _, _ = channel.recvmsg(
        MESSAGE_MAX, socket.CMSG_SPACE(_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = [
        fd
        for level, kind, raw in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in struct.iter_unpack("i", raw[: len(raw) - len(raw) % 4])
    ]
    if not data:
        return None, descriptors
    return json.loads(data), descriptors


def work(channel: socket.socket) -> None:
    """Do jobs until the daemon's end of `channel` is closed."""
    while True:
        try:
            job, descriptors = receive_message(channel)
        except OSError:
            return
        if job is None:
            return
        _do_job(channel, job, descriptors)


def _do_job(channel: socket.socket, job: dict[str, Any], descriptors: list[int]) -> None:
    def tell(event: str, **more: object) -> None:
        with contextlib.suppress(
            OSError
        ):  # the daemon is gone: the entry on disk speaks for itself
            send_message(channel, {"event": event, "id": job["id"], **more})

    entry = Entry(job["id"], descriptors.pop(0))
    try:
        with entry:
            _JOBS[job["job"]](job, entry, descriptors, tell)
    except _RefusedError:
        tell("refused")
    except Exception as e:  # boundary: one crash must not take the worker along
        known = isinstance(e, CrashdError | OSError)
        log.log(
            logging.WARNING if known else logging.ERROR,
            "crash %s: %s failed: %s, salvaging",
            job["id"],
            job["job"],
            e,
            exc_info=not known,
        )
        tell("failed", error=str(e)[:500])
    else:
        tell("done")
    finally:
        for fd in descriptors:
            os.close(fd)


def _capture_pipe(job: dict[str, Any], entry: Entry, descriptors: list[int], tell: Any) -> None:
    if not job["accepted"]:
        with Connection(socket.socket(fileno=descriptors.pop(RECEIPT_AT))) as handler:
            if not handler.send_receipt():
                raise _RefusedError
        tell("accepted")
    source = descriptors.pop(0)
    incoming = IncomingCore.from_pipe(source, descriptors.pop(0) if descriptors else None)
    _capture(job, entry, incoming, tell)


def _capture_spool(job: dict[str, Any], entry: Entry, descriptors: list[int], tell: Any) -> None:
    with SpoolEntry(job["spool"], descriptors.pop(0)) as spooled:
        source = spooled.open_core()
        if source is None:
            source = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        incoming = IncomingCore.from_spool(source, spooled.snapshot)
        _capture(job, entry, incoming, tell, ending=spooled.ending())


def _capture(
    job: dict[str, Any], entry: Entry, incoming: IncomingCore, tell: Any, ending: str | None = None
) -> None:
    try:
        crash = entry.read()
        final = capture(
            crash,
            entry,
            incoming,
            Options.from_json(job["options"]),
            with_proc=job["with_proc"],
            identified=lambda: tell("identified"),
        )
    finally:
        incoming.release()
    if ending and final.state is not State.COMPLETE:
        final = replace(final, capture=replace(final.capture, reason=f"spooled: {ending}"))
        entry.write(final, sync=True)


def _salvage(job: dict[str, Any], entry: Entry, descriptors: list[int], tell: Any) -> None:
    del descriptors, tell
    salvage(entry.read(), entry, job["reason"])


_JOBS = {"capture": _capture_pipe, "import": _capture_spool, "salvage": _salvage}
