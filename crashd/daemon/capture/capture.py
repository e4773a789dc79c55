"""The capture of one crash, top to bottom: identify, read the head, decide, take the core, commit.

A plain synchronous function, run by a worker process on an `IncomingCore` of whatever origin. A
core that is cut is a recorded fact, never an error.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crashd.daemon.capture.pump import BASE_BYTES
from crashd.daemon.capture.store_core import LATE, Options, Source, Taken, take
from crashd.daemon.capture.timedread import Reader
from crashd.domain.crash import record
from crashd.domain.crash.boundedrecord import METADATA_BYTES, MINI_BYTES, RECORD_BYTES
from crashd.domain.crash.model import Core, Crash, Disposition, Engine, Mode, State
from crashd.domain.elf import elfcore
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.errors import FormatError, reason_of
from crashd.store.entry import Entry

EARLY_RECORD_BYTES = 64 << 20
"""What is known of a crash is written before its core is taken only where that lasts: a small core
is taken sooner than the record would be written.
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """What may be done with a crash whose site is known."""

    disposition: Disposition = Disposition.FULL
    reason: str | None = None
    """Why not more is kept."""
    buffer_bytes: int = BASE_BYTES
    credit_bytes: int = 0
    """How far below `keep_free` the capture may go: as much is being deleted for it."""
    leave_bytes: int = 0
    """How much more than `keep_free` it leaves to other users' crashes."""


Decide = Callable[[Crash, elfcore.CoreHead | None, int], Decision]
"""From the crash as far as it is known, the core's head, and how many bytes are to be read."""


def capture(
    crash: Crash,
    entry: Entry,
    incoming: IncomingCore,
    options: Options,
    *,
    with_proc: bool,
    identified: Callable[[], None],
    decide: Decide,
    reader: Reader,
    refused: str | None = None,
) -> Crash:
    """Capture one crash into its entry and commit it; return the final record, which is on disk.

    `identified` is called once nothing more is needed of /proc but the memory, `decide` once all is
    known that can be before the memory is read; `incoming` is released as soon as its last byte is
    read, before it is compressed and synced. With `refused`, the reason, nothing is read of the
    core at all.

    Raises:
        FormatError: the kernel does not offer a core in words that we know.
        OSError: the record itself cannot be written; the entry stays in state `capturing`.

    """
    deadline_ns = time.monotonic_ns() + options.deadline_ns
    if refused is None:
        incoming.accept()  # now: the kernel writes while we look at /proc
    seen = _look(crash, incoming, with_proc=with_proc)
    identified()
    if refused is not None:
        return _refuse(seen.add_to(crash, options), entry, incoming, options, refused)
    raw, head, trouble = read_head(incoming, deadline_ns)
    source = Source(incoming, raw, head, options, reader)
    try:
        source.swallow(deadline_ns)
        crash = seen.add_to(crash, options)
        if head is not None:
            crash = record.add_head(crash, head)
        crash = replace(crash, owner_uid=record.owner_of(crash, head, seen.credentials))
        limit = record.allow(crash, max_core=options.max_core, honour_rlimit=options.honour_rlimit)
        taken, limit = _take(crash, entry, source, limit, decide, deadline_ns)
    finally:
        source.release()
    if taken.core.path:
        entry.commit_core()
    crash = _conclude(crash, head, limit, replace(taken, reason=trouble or taken.reason))
    return _commit(crash, entry, incoming, options)


def _refuse(
    crash: Crash, entry: Entry, incoming: IncomingCore, options: Options, reason: str
) -> Crash:
    """Let the process go without its core."""
    incoming.refuse()
    capture = replace(crash.capture, disposition=Disposition.METADATA, reason=reason)
    crash = replace(crash, state=State.METADATA_ONLY, capture=capture)
    return _commit(crash, entry, incoming, options)


def _commit(crash: Crash, entry: Entry, incoming: IncomingCore, options: Options) -> Crash:
    hold_ns = _hold_ns(incoming, crash)
    crash = replace(crash, capture=replace(crash.capture, hold_ns=hold_ns))
    return entry.write(crash, sync=True, max_bytes=_record_bytes(crash, entry, options))


def _record_bytes(crash: Crash, entry: Entry, options: Options) -> int:
    """Return how large the record may be: what a storm of crashes leaves must not fill the disk."""
    most = MINI_BYTES if crash.capture.disposition is Disposition.MINI else RECORD_BYTES
    if crash.core.path is None:
        most = METADATA_BYTES
    return min(most, entry.spare_bytes(options.keep_free_bytes))


def _take(
    crash: Crash,
    entry: Entry,
    source: Source,
    limit: record.Allowance,
    decide: Decide,
    deadline_ns: int,
) -> tuple[Taken, record.Allowance]:
    """Decide what is to be kept of the core, and take that."""
    if not source.raw or limit.disposition is Disposition.METADATA:
        return Taken(build_id=source.build_id(), reason=limit.reason), limit
    source.open_memory(crash.mountinfo or b"")
    build_id = source.build_id()
    wanted = source.wanted_bytes(crash.status or b"")
    asked_ns = time.monotonic_ns()
    decision = decide(replace(crash, build_id=build_id), source.head, wanted)
    deadline_ns += time.monotonic_ns() - asked_ns  # the daemon's delay is not the capture's
    limit = _lower(limit, decision)
    if limit.disposition is Disposition.METADATA:
        return Taken(build_id=build_id, reason=limit.reason), limit
    if limit.disposition is Disposition.MINI:
        source.make_mini()
    spooled = source.incoming.spooled_bytes() is not None  # then as much comes free as is taken
    leave_bytes = 0 if spooled else decision.leave_bytes
    source.options = replace(
        source.options, credit_bytes=decision.credit_bytes, leave_bytes=leave_bytes
    )
    if wanted > EARLY_RECORD_BYTES:
        # whatever becomes of the core, this much is known
        entry.write(crash, sync=False, max_bytes=entry.spare_bytes(source.options.keep_free_bytes))
    taken = take(source, entry, limit, decision.buffer_bytes, deadline_ns)
    if taken.no_room:
        limit = record.Allowance(0, Disposition.METADATA, taken.reason)
    taken = replace(taken, expected_bytes=source.expected_bytes)
    return replace(taken, build_id=taken.build_id or build_id), limit


def _lower(limit: record.Allowance, decision: Decision) -> record.Allowance:
    """Lower what the limits allow to what was decided."""
    if decision.disposition is Disposition.FULL:
        return limit
    size = 0 if decision.disposition is Disposition.METADATA else limit.size_bytes
    return record.Allowance(size, decision.disposition, decision.reason or limit.reason)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What /proc and the pidfd told; read while the process was held, understood after."""

    snapshot: Mapping[str, bytes]
    credentials: record.Credentials | None
    warning: str | None

    def add_to(self, crash: Crash, options: Options) -> Crash:
        """Add it to the record."""
        crash = record.add_process(
            crash,
            self.snapshot,
            self.credentials,
            environ_mode=options.environ,
            patterns=options.patterns,
        )
        if self.warning is None:
            return crash
        return replace(crash, warnings=(*crash.warnings, self.warning))


def _look(crash: Crash, incoming: IncomingCore, *, with_proc: bool) -> _Seen:
    """Read what /proc and the pidfd tell."""
    pid = incoming.pid()
    if pid not in (None, crash.pid):
        incoming.distrust()
        mismatch = f"the pidfd is that of pid {pid}: nothing was read of either process"
        return _Seen({}, None, mismatch)
    info = incoming.identity()
    credentials = record.Credentials(info.uids, info.gids, info.coredump_mask) if info else None
    if not with_proc:
        return _Seen({}, credentials, "reading /proc took too long and was given up")
    snapshot = incoming.snapshot()
    if credentials is not None:
        credentials = replace(credentials, namespace=snapshot.get("user_ns_owner", b""))
    return _Seen(snapshot, credentials, None)


def _conclude(
    crash: Crash, head: elfcore.CoreHead | None, limit: record.Allowance, taken: Taken
) -> Crash:
    """Say what was captured, and whether it is all there was."""
    core, reason = taken.core, taken.reason
    complete = core.path is not None and reason is None and head is not None
    if head is not None:
        expected = taken.expected_bytes or head.expected_size
        complete = complete and core.size_bytes >= expected
        core = replace(core, expected_bytes=expected)
        if core.path and not complete and reason is None:
            reason = f"the stream ended after {core.size_bytes} of {expected} bytes"
    if complete:
        reason = None if limit.disposition is Disposition.FULL else limit.reason
    warnings = crash.warnings
    if taken.doubt:
        warnings += (f"not read from memory but from the stream: {taken.doubt}",)
    return replace(
        crash,
        state=_final_state(core, complete, limit),
        build_id=taken.build_id,
        capture=replace(
            crash.capture,
            engine=taken.engine if core.path else Engine.NONE,
            disposition=limit.disposition,
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


def _hold_ns(incoming: IncomingCore, crash: Crash) -> int | None:
    """Tell how long the process was held: from the handler's start to the release."""
    released = incoming.released_boottime_ns
    if incoming.mode is Mode.SPOOL or crash.boottime_ns is None or released is None:
        return None
    return max(0, released - crash.boottime_ns)


def read_head(
    incoming: IncomingCore, deadline_ns: int
) -> tuple[bytes, elfcore.CoreHead | None, str | None]:
    """Read headers and notes, which come first.

    Returns the bytes, what they say if they are a core's, and what went wrong, if anything did.
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
        pass  # no core, or a head too large to hold: parse_head says which; the bytes are kept
    raw = bytes(buffer[:held])
    try:
        return raw, elfcore.parse_head(raw), trouble
    except FormatError as e:
        return raw, None, trouble or reason_of(e)
