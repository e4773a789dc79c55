"""The capture of one crash, top to bottom: identify, read the head, decide, take the core, commit.

A plain synchronous function, run by a worker process on an `IncomingCore` of whatever origin. A
core that is cut is a recorded fact, never an error.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from crashd.daemon.pump import BASE_BYTES
from crashd.daemon.reader import Reader
from crashd.daemon.taking import LATE, Options, Source, Taken, take
from crashd.domain import elfcore, record
from crashd.domain.model import Core, Crash, Disposition, Engine, Mode, State
from crashd.edge.incoming import DeadlineError, IncomingCore
from crashd.errors import FormatError
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
) -> Crash:
    """Capture one crash into its entry and commit it; return the final record, which is on disk.

    `identified` is called once nothing more is needed of /proc but the memory, `decide` once all is
    known that can be before the memory is read; `incoming` is released as soon as its last byte is
    read, before it is compressed and synced.

    Raises:
        OSError: the record itself cannot be written; the entry stays in state `capturing`.

    """
    deadline_ns = time.monotonic_ns() + options.deadline_ns
    crash, credentials = _identify(crash, incoming, options, with_proc=with_proc)
    identified()
    raw, head, trouble = read_head(incoming, deadline_ns)
    if head is not None:
        crash = record.add_head(crash, head)
    crash = replace(crash, owner_uid=record.owner_of(crash, head, credentials))
    limit = record.allow(crash, max_core=options.max_core, honour_rlimit=options.honour_rlimit)
    source = Source(incoming, raw, head, options, reader)
    try:
        taken, limit = _take(crash, entry, source, limit, decide, deadline_ns)
    finally:
        source.release()
    if taken.core.path:
        entry.commit_core()
    crash = _conclude(crash, head, limit, replace(taken, reason=trouble or taken.reason))
    hold_ns = _hold_ns(incoming, crash)
    crash = replace(crash, capture=replace(crash.capture, hold_ns=hold_ns))
    entry.write(crash, sync=True)
    return crash


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
    source.swallow(deadline_ns)
    source.open_memory(crash.mountinfo or b"")
    build_id = source.build_id()
    wanted = source.wanted_bytes(crash.status or b"")
    decision = decide(replace(crash, build_id=build_id), source.head, wanted)
    if wanted > EARLY_RECORD_BYTES:
        entry.write(crash, sync=False)  # whatever becomes of the core, this much is known
    taken = take(source, entry, limit, decision.buffer_bytes, deadline_ns)
    return replace(taken, build_id=taken.build_id or build_id), limit


def _identify(
    crash: Crash, incoming: IncomingCore, options: Options, *, with_proc: bool
) -> tuple[Crash, record.Credentials | None]:
    """Add what /proc and the pidfd tell."""
    if incoming.pid() not in (None, crash.pid):
        mismatch = f"the pidfd is that of pid {incoming.pid()}: nothing was read of either process"
        incoming.distrust()
        return replace(crash, warnings=(*crash.warnings, mismatch)), None
    snapshot = incoming.snapshot() if with_proc else {}
    info = incoming.identity()
    credentials = record.Credentials(info.uids, info.gids, info.coredump_mask) if info else None
    crash = record.add_process(
        crash, snapshot, credentials, environ_mode=options.environ, patterns=options.patterns
    )
    if not with_proc:
        given_up = "reading /proc took too long and was given up"
        crash = replace(crash, warnings=(*crash.warnings, given_up))
    return crash, credentials


def _conclude(
    crash: Crash, head: elfcore.CoreHead | None, limit: record.Allowance, taken: Taken
) -> Crash:
    """Say what was captured, and whether it is all there was."""
    core, reason = taken.core, taken.reason
    complete = core.path is not None and reason is None and head is not None
    if head is not None:
        complete = complete and core.size_bytes >= head.expected_size
        core = replace(core, expected_bytes=head.expected_size)
        if core.path and not complete and reason is None:
            reason = f"the stream ended after {core.size_bytes} of {head.expected_size} bytes"
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
            reason=None if complete else reason,
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
        return raw, None, trouble or str(e)
