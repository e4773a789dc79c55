"""The capture of one crash, top to bottom: identify, read the head, decide, read the core, release
the process; store the core, commit.

A plain synchronous function that a worker process runs on an `IncomingCore` of any origin. A cut
core is a recorded fact, never an error.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from crashd.daemon.capture.keepfiles import MappedFiles
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pace import Pace
from crashd.daemon.capture.source import LATE, CoreSource
from crashd.daemon.capture.store_core import Grant, HeldCore, KeptCore, hold_core
from crashd.daemon.capture.timedread import Reader
from crashd.domain.crash import record
from crashd.domain.crash.boundedrecord import METADATA_BYTES, MINI_BYTES, RECORD_BYTES
from crashd.domain.crash.cgroup import is_in_roots_container
from crashd.domain.crash.model import Core, Crash, Disposition, Engine, Mode, State
from crashd.domain.crash.procfs import parse_status
from crashd.domain.elf import elfcore
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.edge.capture.podnames import read_pod
from crashd.edge.capture.successor import HELD_BYTES
from crashd.errors import FormatError, reason_of
from crashd.store.entry import Entry

EARLY_RECORD_BYTES = 64 << 20
"""Larger cores have an early record on disk before they are read. A smaller core is read in less
time than writing that record takes.
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to keep of a crash, and the resources for it, decided by its crash site."""

    disposition: Disposition = Disposition.FULL
    reason: str | None = None
    """Why crashd does not keep more."""
    grant: Grant = field(default_factory=Grant)
    credit_bytes: int = 0
    """How far below `keep_free` the capture may go: retention is deleting as much for it."""
    leave_bytes: int = 0
    """Space beyond `keep_free` that the capture leaves for other users' crashes."""


class Desk:
    """The other side of a capture: decides and takes its reports. This base class serves a capture
    without a daemon: keep everything, use few resources, store at once.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        """The pace at which the core is stored."""

    def identified(self) -> None:
        """Note that the capture needs nothing more from /proc except the memory."""

    def decide(self, crash: Crash, head: elfcore.CoreHead | None, wanted: int) -> Decision:
        """Return what to keep, once everything that needs no memory read is known.

        Args:
            crash: the crash, as far as it is known.
            head: the head of the core.
            wanted: the number of bytes to read.

        """
        del crash, head, wanted
        return Decision()

    def taken_over(self) -> None:
        """Note that this process continues the capture of a worker that was killed."""

    def released(self, options: Options, read_bytes: int, spilled_bytes: int) -> int:
        """Note that the process is released. Return the number of compressing threads as soon as
        the core may be stored.
        """
        del read_bytes, spilled_bytes
        return options.threads


def capture(
    crash: Crash,
    entry: Entry,
    incoming: IncomingCore,
    options: Options,
    desk: Desk,
    *,
    with_proc: bool,
    reader: Reader,
    refused: str | None = None,
) -> Crash:
    """Capture one crash into its entry and commit it; return the final record, which is on disk.

    `incoming` is released as soon as its last byte is read, before the core is compressed and
    synced. With `refused`, a reason, the capture reads nothing of the core.

    Raises:
        FormatError: the kernel offers a core in an unknown protocol.
        OSError: the record itself cannot be written; the entry stays in state `capturing`.

    """
    deadline_ns = time.monotonic_ns() + options.deadline_ns
    crash = replace(crash, capture=replace(crash.capture, queued_ns=_since(incoming, crash)))
    # held: anything that waits for the process waits for each of these lines
    if refused is None:
        incoming.accept()  # now: the kernel writes while we look at /proc
    seen = _identify(crash, incoming, options, desk, with_proc=with_proc)
    if refused is not None:
        return _refuse(seen.add_to(crash, options), entry, incoming, options, refused)
    with MappedFiles(incoming, seen.snapshot, options) as files:
        raw, head, trouble = read_head(incoming, deadline_ns)
        source = CoreSource(incoming, raw, head, options, reader)
        try:
            source.swallow(deadline_ns)
            crash, limit = seen.describe(crash, head, options)
            limit = limit.for_spooled(incoming.spooled_bytes())
            held, limit = _hold(crash, entry, source, limit, desk, deadline_ns)
        finally:
            source.release()
        # released: no process waits for what follows
        kept = _store(crash, entry, source, held, desk)
        if kept.core.path:
            entry.commit_core()
            crash = files.keep(crash, entry, reader, desk.pace)
    if kept.no_room:
        limit = record.Allowance(0, Disposition.METADATA, kept.reason)
    crash = _conclude(crash, head, limit, replace(kept, reason=trouble or kept.reason))
    return _commit(crash, entry, incoming, source.options)


def _identify(
    crash: Crash, incoming: IncomingCore, options: Options, desk: Desk, *, with_proc: bool
) -> "_Seen":
    """Look at the process, and fork a copy of this worker if reading the memory takes long."""
    seen = _look(crash, incoming, with_proc=with_proc)
    if seen.is_large and options.engine != "stream" and incoming.begin_guard():
        desk.taken_over()
    desk.identified()
    return seen


def _refuse(
    crash: Crash, entry: Entry, incoming: IncomingCore, options: Options, reason: str
) -> Crash:
    """Release the process without reading its core."""
    incoming.refuse()
    capture = replace(crash.capture, disposition=Disposition.METADATA, reason=reason)
    crash = replace(crash, state=State.METADATA_ONLY, capture=capture)
    return _commit(crash, entry, incoming, options)


def _commit(crash: Crash, entry: Entry, incoming: IncomingCore, options: Options) -> Crash:
    capture = replace(
        crash.capture, hold_ns=_hold_ns(incoming, crash), store_ns=_store_ns(incoming)
    )
    crash = replace(crash, capture=capture)
    return entry.write(crash, sync=True, max_bytes=_record_bytes(crash, entry, options))


def _record_bytes(crash: Crash, entry: Entry, options: Options) -> int:
    """Return how large the record may be: the records of a crash storm must not fill the disk."""
    most = MINI_BYTES if crash.capture.disposition is Disposition.MINI else RECORD_BYTES
    if crash.core.path is None:
        most = METADATA_BYTES
    return min(most, entry.spare_bytes(options.keep_free_bytes))


def _hold(
    crash: Crash,
    entry: Entry,
    source: CoreSource,
    limit: record.Allowance,
    desk: Desk,
    deadline_ns: int,
) -> tuple[HeldCore | KeptCore, record.Allowance]:
    """Decide what to keep of the core, and read that part."""
    if not source.raw or limit.disposition is Disposition.METADATA:
        return KeptCore(build_id=source.build_id(), reason=limit.reason), limit
    source.open_memory(crash.mountinfo or b"")
    build_id = source.build_id()
    wanted = source.wanted_bytes(crash.status or b"")
    asked_ns = time.monotonic_ns()
    decision = desk.decide(replace(crash, build_id=build_id), source.head, wanted)
    deadline_ns += time.monotonic_ns() - asked_ns  # the daemon's delay is not the capture's
    limit = limit.lowered(decision.disposition, decision.reason)
    if limit.disposition is Disposition.METADATA:
        return KeptCore(build_id=build_id, reason=limit.reason), limit
    if limit.disposition is Disposition.MINI:
        source.make_mini()
    spooled = source.incoming.mode is Mode.SPOOL  # the spool frees as much as the store takes
    source.options = replace(
        source.options,
        credit_bytes=decision.credit_bytes,
        leave_bytes=0 if spooled else decision.leave_bytes,
    )
    if wanted > EARLY_RECORD_BYTES:
        # keep at least this much if reading the core fails
        entry.write(crash, sync=False, max_bytes=entry.spare_bytes(source.options.keep_free_bytes))
    # a spooled core holds no process: it is stored as slowly as the core of a released process
    pace = desk.pace if spooled else None
    held = hold_core(source, entry, limit, decision.grant, deadline_ns, pace)
    if isinstance(held, KeptCore):
        held = replace(held, build_id=build_id, expected_bytes=source.expected_bytes)
    else:
        held.build_id = build_id
        if source.incoming.guard.is_there:  # before it ends, so that there is always one
            held.guard(desk.taken_over)
    return held, limit


def _store(
    crash: Crash, entry: Entry, source: CoreSource, held: HeldCore | KeptCore, desk: Desk
) -> KeptCore:
    """Store the core that was read, once the daemon allows it."""
    if isinstance(held, KeptCore):
        return held
    try:
        held.guard(desk.taken_over)
        hold_ns = _hold_ns(source.incoming, crash)
        known = replace(crash, capture=replace(crash.capture, hold_ns=hold_ns))
        spare = entry.spare_bytes(source.options.keep_free_bytes)
        with contextlib.suppress(OSError):  # may fail: the final record must be written anyway
            # in case this process is killed before the core is stored: everything known so far
            entry.write(known, sync=False, max_bytes=spare)
        threads = desk.released(source.options, held.read_bytes, held.spilled_bytes)
        return held.store(threads, desk.pace)
    finally:
        held.close()


@dataclass(frozen=True, slots=True)
class _Seen:
    """Raw facts from /proc and the pidfd; read while the process was held, parsed afterwards."""

    snapshot: Mapping[str, bytes]
    credentials: record.ProcessCredentials | None
    warning: str | None

    @property
    def is_large(self) -> bool:
        """Return whether reading the memory takes longer than forking a copy of this process."""
        status = parse_status(self.snapshot.get("status", b""))
        return (status.vm_rss_bytes or 0) + (status.vm_swap_bytes or 0) >= HELD_BYTES

    def add_to(self, crash: Crash, options: Options) -> Crash:
        """Return a crash whose core is not read with these facts added."""
        return self.describe(crash, None, options)[0]

    def describe(
        self, crash: Crash, head: elfcore.CoreHead | None, options: Options
    ) -> tuple[Crash, record.Allowance]:
        """Return the crash with these facts added, and how much of its core may be kept."""
        crash, limit = record.describe(crash, self.snapshot, head, self.credentials, options.limits)
        if self.warning is not None:
            crash = replace(crash, warnings=(*crash.warnings, self.warning))
        # Below a user's own cgroup, that user chooses which pod its name claims.
        if crash.pod_uid is not None and is_in_roots_container(crash.cgroup):
            crash = replace(crash, pod=read_pod(crash.container_id, crash.pod_uid, os.environ))
        return crash, limit


def _look(crash: Crash, incoming: IncomingCore, *, with_proc: bool) -> _Seen:
    """Return what /proc and the pidfd report about the process."""
    pid = incoming.pid()
    if pid not in (None, crash.pid):
        incoming.distrust()
        mismatch = f"the pidfd is that of pid {pid}: nothing was read of either process"
        return _Seen({}, None, mismatch)
    info = incoming.identity()
    credentials = (
        record.ProcessCredentials(info.uids, info.gids, info.coredump_mask) if info else None
    )
    if not with_proc:
        return _Seen({}, credentials, "reading /proc took too long and was given up")
    snapshot = incoming.snapshot()
    if credentials is not None:
        credentials = replace(credentials, namespace=snapshot.get("user_ns_owner", b""))
    return _Seen(snapshot, credentials, None)


def _conclude(
    crash: Crash, head: elfcore.CoreHead | None, limit: record.Allowance, kept: KeptCore
) -> Crash:
    """Return the crash with the outcome: what was captured, and whether it is complete."""
    core, reason = kept.core, kept.reason
    complete = core.path is not None and reason is None and head is not None
    if head is not None:
        expected = kept.expected_bytes or head.expected_size
        complete = complete and core.size_bytes >= expected
        core = replace(core, expected_bytes=expected)
        if core.path and not complete and reason is None:
            reason = f"the stream ended after {core.size_bytes} of {expected} bytes"
    if complete:
        reason = None if limit.disposition is Disposition.FULL else limit.reason
    warnings = crash.warnings
    if kept.doubt:
        warnings += (f"not read from memory but from the stream: {kept.doubt}",)
    return replace(
        crash,
        state=_final_state(core, complete, limit),
        build_id=kept.build_id,
        capture=replace(
            crash.capture,
            engine=kept.engine if core.path else Engine.NONE,
            disposition=limit.disposition,
            spilled_bytes=kept.spilled_bytes,
            reason=reason,
        ),
        core=replace(core, complete=complete),
        warnings=warnings,
    )


def _final_state(core: Core, complete: bool, limit: record.Allowance) -> State:
    if complete:
        return State.COMPLETE
    if core.path:
        return State.TRUNCATED
    return State.METADATA_ONLY if limit.disposition is Disposition.METADATA else State.LOST


def _since(incoming: IncomingCore, crash: Crash) -> int | None:
    """Return how long the process has been held so far; None if it is not held, or unknown."""
    if incoming.mode is Mode.SPOOL or crash.boottime_ns is None:
        return None
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - crash.boottime_ns)


def _hold_ns(incoming: IncomingCore, crash: Crash) -> int | None:
    """Return how long the process was held: from the handler's start to the release."""
    released = incoming.released_boottime_ns
    if incoming.mode is Mode.SPOOL or crash.boottime_ns is None or released is None:
        return None
    return max(0, released - crash.boottime_ns)


def _store_ns(incoming: IncomingCore) -> int | None:
    """Return how long ago the process was released."""
    released = incoming.released_boottime_ns
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return None if released is None else max(0, now_ns - released)


def read_head(
    incoming: IncomingCore, deadline_ns: int
) -> tuple[bytes, elfcore.CoreHead | None, str | None]:
    """Read headers and notes, which come first in the stream.

    Returns the bytes, the parsed head if they belong to a core, and what went wrong, if anything.
    """
    buffer, held, needed, trouble = bytearray(), 0, 1, None
    try:
        while held < needed:
            buffer += bytes(needed - len(buffer))
            with memoryview(buffer) as view:
                got = incoming.read_into(view[held:], deadline_ns)
            if got == 0:
                trouble = f"the stream ended after {held} bytes"
                break
            held += got
            if held == needed:
                needed = elfcore.head_size(bytes(buffer))
    except DeadlineError:
        trouble = LATE
    except FormatError:
        pass  # not a core, or its head is too large: parse_head says which; the bytes are kept
    raw = bytes(buffer[:held])
    try:
        return raw, elfcore.parse_head(raw), trouble
    except FormatError as e:
        return raw, None, trouble or reason_of(e)
