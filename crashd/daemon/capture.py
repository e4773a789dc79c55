"""The capture of one crash, top to bottom: identify, read the head, decide, read the memory,
commit.

A plain synchronous function, run by a worker process on an `IncomingCore` of whatever origin, and
told apart only by its engine. A core that is cut is a recorded fact, never an error.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from crashd.domain import elfcore, record
from crashd.domain.model import Core, Crash, Disposition, Engine, Mode, State
from crashd.domain.scrub import EnvironMode
from crashd.edge.incoming import DeadlineError, IncomingCore
from crashd.errors import FormatError
from crashd.store import corefile
from crashd.store.entry import CORE, Entry

READ_BYTES = 1 << 20
LATE = "the core did not arrive before capture.deadline"
FREE_CHECK_BYTES = 64 << 20
"""Free space is looked at again after so many bytes stored."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the configuration says of a capture; travels to the workers as JSON."""

    max_core: int | None
    honour_rlimit: bool
    keep_free_bytes: int
    level: int
    threads: int
    deadline_ns: int
    environ: EnvironMode
    patterns: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Options":
        """Parse what `to_json` made."""
        values = {field.name: document[field.name] for field in fields(cls)}
        values["patterns"] = tuple(values["patterns"])
        return cls(**values)


class _Stop(Exception):
    """The core ends here; the text says why."""


class _Sink:
    """Where a core's bytes go: counts, limits, compresses."""

    def __init__(self, entry: Entry, limit: record.Allowance, options: Options) -> None:
        self._limit = limit
        self._options = options
        self._fd = entry.create_core()
        self._writer = corefile.CoreWriter(self._fd, level=options.level, threads=options.threads)
        self._checked = 0
        try:
            self._check_free()
        except _Stop:
            os.close(self._fd)
            raise

    def put(self, data: memoryview) -> None:
        """Take the next bytes; `_Stop` when a limit is met or the disk refuses."""
        room = self._limit.size_bytes - self._writer.size_bytes
        try:
            self._writer.write(data[:room])
        except OSError as e:
            raise _Stop(f"writing the core failed: {e.strerror}") from e
        if len(data) > room:
            raise _Stop(self._limit.reason or "limit")
        if self._writer.stored_bytes - self._checked >= FREE_CHECK_BYTES:
            self._checked = self._writer.stored_bytes
            self._check_free()

    def _check_free(self) -> None:
        filesystem = os.fstatvfs(self._fd)
        free = filesystem.f_bavail * filesystem.f_frsize
        if free < self._options.keep_free_bytes:
            raise _Stop(
                f"{free} bytes free on the store's file system, "
                f"retention.process.keep_free is {self._options.keep_free_bytes}"
            )

    def finish(self) -> Core:
        """End the stream, sync the file, and tell what is in it; `Core.complete` is for the caller
        to say.
        """
        try:
            self._writer.finish()
            os.fsync(self._fd)
        except OSError:
            corefile.repair(self._fd)
            size = sum(len(chunk) for chunk in corefile.read_core(self._fd))
            stored = os.fstat(self._fd).st_size
            return Core(CORE, size, stored, min(size, self._writer.resident_bytes))
        writer = self._writer
        return Core(CORE, writer.size_bytes, writer.stored_bytes, writer.resident_bytes)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        os.close(self._fd)


def capture(
    crash: Crash,
    entry: Entry,
    incoming: IncomingCore,
    options: Options,
    *,
    with_proc: bool,
    identified: Callable[[], None],
) -> Crash:
    """Capture one crash into its entry and commit it; return the final record, which is on disk.

    `identified` is called once nothing more is needed of /proc; `incoming` is released as soon as
    its last byte is not needed, before anything is compressed to the end or synced.

    Raises:
        OSError: the record itself cannot be written; the entry stays in state `capturing`.

    """
    deadline_ns = time.monotonic_ns() + options.deadline_ns
    crash, credentials = _identify(crash, incoming, options, with_proc=with_proc)
    identified()
    raw, head, trouble = _read_head(incoming, deadline_ns)
    if head is not None:
        crash = record.add_head(crash, head)
    crash = replace(crash, owner_uid=record.owner_of(crash, head, credentials))
    entry.write(crash, sync=False)  # whatever becomes of the core, this much is known

    limit = record.allow(crash, max_core=options.max_core, honour_rlimit=options.honour_rlimit)
    taken = _Taken(Core(), None, limit.reason)
    if raw and limit.disposition is not Disposition.METADATA:
        taken = _stream(raw, head, entry, incoming, limit, options, deadline_ns)
    incoming.release()
    if taken.core.path:
        entry.commit_core()
    crash = _conclude(crash, raw, head, limit, replace(taken, reason=trouble or taken.reason))
    hold_ns = _hold_ns(incoming, crash)
    crash = replace(crash, capture=replace(crash.capture, hold_ns=hold_ns))
    entry.write(crash, sync=True)
    return crash


@dataclass(frozen=True, slots=True)
class _Taken:
    """What an engine took of a core."""

    core: Core
    build_id: str | None
    reason: str | None
    """Why it is not whole; None when the stream was read to its end."""


def _identify(
    crash: Crash, incoming: IncomingCore, options: Options, *, with_proc: bool
) -> tuple[Crash, record.Credentials | None]:
    """Add what /proc and the pidfd tell."""
    if incoming.pid() not in (None, crash.pid):
        mismatch = f"the pidfd is that of pid {incoming.pid()}: nothing was read of either process"
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
    crash: Crash,
    raw: bytes,
    head: elfcore.CoreHead | None,
    limit: record.Allowance,
    taken: _Taken,
) -> Crash:
    """Say what was captured, and whether it is all there was."""
    core, build_id, reason = taken.core, taken.build_id, taken.reason
    complete = core.path is not None and reason is None and head is not None
    if head is not None:
        build_id = build_id or _build_id(raw, head)
        complete = complete and core.size_bytes >= head.expected_size
        core = replace(core, expected_bytes=head.expected_size)
        if core.path and not complete and reason is None:
            reason = f"the stream ended after {core.size_bytes} of {head.expected_size} bytes"
    return replace(
        crash,
        state=_final_state(core, complete, limit),
        build_id=build_id,
        capture=replace(
            crash.capture,
            engine=Engine.STREAM if core.path else Engine.NONE,
            disposition=limit.disposition,
            reason=None if complete else reason,
        ),
        core=replace(core, complete=complete),
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


def _read_head(
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


class _Spy:
    """Picks one range of the core's bytes out of the stream as they go by."""

    def __init__(self, wanted: tuple[int, int] | None) -> None:
        self._start, size = wanted or (0, 0)
        self._end = self._start + size
        self._position = 0
        self._parts: list[bytes] = []

    def see(self, data: memoryview) -> None:
        """Look at the next bytes."""
        begin, self._position = self._position, self._position + len(data)
        if begin < self._end and self._position > self._start:
            self._parts.append(bytes(data[max(0, self._start - begin) : self._end - begin]))

    def bytes(self) -> bytes:
        """Tell what was seen of the range."""
        return b"".join(self._parts)


def _stream(
    raw: bytes,
    head: elfcore.CoreHead | None,
    entry: Entry,
    incoming: IncomingCore,
    limit: record.Allowance,
    options: Options,
    deadline_ns: int,
) -> _Taken:
    """Drain the stream into the store: the engine that is always right."""
    spy = _Spy(elfcore.executable_range(head) if head is not None else None)
    buffer = memoryview(bytearray(READ_BYTES))
    reason: str | None = None
    try:
        sink = _Sink(entry, limit, options)
    except (_Stop, OSError) as e:
        entry.drop_partial()
        return _Taken(Core(), None, str(e))
    try:
        try:
            data = memoryview(raw)
            while data:
                spy.see(data)
                sink.put(data)
                data = buffer[: incoming.read_into(buffer, deadline_ns)]
        except _Stop as e:
            reason = str(e)
        except DeadlineError:
            reason = LATE
        incoming.release()
        core = sink.finish()
    finally:
        sink.close()
    return _Taken(core, elfcore.parse_build_id(spy.bytes()), reason)


def _build_id(raw: bytes, head: elfcore.CoreHead) -> str | None:
    """Find the build-id where only the head was read: a small process may have it there already."""
    wanted = elfcore.executable_range(head)
    return elfcore.parse_build_id(raw[wanted[0] : sum(wanted)]) if wanted else None
