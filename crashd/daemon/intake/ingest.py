"""Take in crashes from the handler, the kernel, the spool, and a daemon that died. It is one idea
despite its length: all sources share one path, and it must never take a crash twice.

handler ─ Handoff ─┐
spool/  ─ fields ──┼─▶ CoreMeta ─▶ Crash (capturing) ─▶ entry ─▶ job ─▶ worker
entries left in state capturing ─▶ salvage job ─────────────────────▶ worker
"""

import contextlib
import logging
import os
import secrets
import socket
import time
from collections import deque
from dataclasses import replace
from typing import Any, Protocol

from crashd.base.files import read_space
from crashd.daemon.intake.admission import Accounts
from crashd.daemon.intake.dispatch import Counters, Dispatcher
from crashd.daemon.intake.job import Job, Kind
from crashd.daemon.ledger import Ledger
from crashd.domain.crash.boundedrecord import LEAST_BYTES, bounded
from crashd.domain.crash.coremeta import CoreMeta
from crashd.domain.crash.losses import Loss
from crashd.domain.crash.model import (
    Capture,
    Crash,
    DropReason,
    Identity,
    Mode,
    State,
    next_sequence,
    to_json,
)
from crashd.domain.crash.record import (
    PIDFD_COREDUMP_USER,
    foreign_mount_ns,
    lost_crash,
    new_crash,
)
from crashd.edge.capture.handoff import Connection, Handoff
from crashd.edge.capture.kernelsock import KernelConnection
from crashd.edge.capture.process import PidfdInfo, boot_id
from crashd.errors import CrashdError, FormatError, NotFoundError, UnavailableError, reason_of
from crashd.store import entry as entries
from crashd.store import spool
from crashd.store.entry import Entry
from crashd.store.paths import Paths

log = logging.getLogger("crashd.ingest")

_COUNTED_MAX = 100_000
_RECENT_MAX = 8192
"""Tokens remembered here because the index is written later: twice as many as can wait at the
socket.
"""


class Refusals(Protocol):
    """Knows which crashes are not worth taking."""

    def refuses(self, uid: int) -> str | None:
        """Return why the core of a user's next crash is not kept; None if it may be kept."""


class Ingest:
    """Admits crashes: writes the first record, then queues the capture. Runs in the daemon's one
    loop.
    """

    def __init__(
        self,
        paths: Paths,
        dispatcher: Dispatcher,
        ledger: Ledger,
        counters: Counters,
        refusals: Refusals,
        accounts: Accounts,
    ) -> None:
        self._paths = paths
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._counters = counters
        self._refusals = refusals
        self._accounts = accounts
        self._may_import = False
        self._boot_id = boot_id()
        self._hostname = os.fsencode(socket.gethostname())
        self._importing: dict[str, int] = {}
        """Names in the spool being imported, each with the bytes of its core in the spool."""
        self._spooled: deque[str] = deque()
        self._recent: dict[str, str] = {}
        self._gave_back = False
        self.finished_total = 0
        self.last_sequence = 0
        """The sequence number of the newest crash."""
        self.queue_max = 128
        self.keep_free_bytes = 0

    def take(self, connection: Connection, handoff: Handoff) -> bool:
        """Admit a crash from the handler; return False if the handler must keep it. Takes ownership
        of the connection and the hand-off.
        """
        try:
            meta = CoreMeta.from_fields(handoff.fields, time.time_ns())
            if self.is_full:
                self._counters.dropped(DropReason.QUEUE_FULL)
                if not self._dispatcher.make_room(self._user(meta.uid)):
                    log.warning("%d crashes wait for a worker, spooling", self._dispatcher.queued)
                    raise _NotTakenError
            if meta.token in self._recent:  # we were stopped meanwhile, and imported it
                log.info("crash %s was spooled before it was accepted", self._recent[meta.token])
                raise _NotTakenError
            crash, entry = self._admit(meta, Mode.PIPE, has_pidfd=handoff.pidfd is not None)
            # from now on the handler waits as long as we live; a handler that gave up earlier
            # spools the crash, and the import finds this entry by its token
            connection.send_queued()
        except (FormatError, OSError, _NotTakenError) as e:
            if isinstance(e, FormatError):
                self._counters.dropped(DropReason.MALFORMED_HANDOFF)
                log.warning("hand-over refused: %s, spooling", e)
            elif isinstance(e, OSError):
                self._counters.dropped(DropReason.STORE_ERROR)
                log.error(
                    "a crash cannot be recorded in %s: %s, spooling",
                    self._paths.crashes,
                    reason_of(e),
                )
            handoff.close()
            connection.close()
            return False
        except BaseException:
            handoff.close()  # whatever went wrong must not hold the crashed process
            connection.close()
            raise
        descriptors = [handoff.core, connection.detach()]  # owned by the job from here on
        if handoff.pidfd is not None:
            descriptors.append(handoff.pidfd)
        self._ledger.recorded(crash)
        more = {"crash": identified(crash)}
        user = self._user(crash.uid)
        self._dispatcher.submit(
            Job(Kind.CAPTURE, entry, descriptors, self, more, uid=user, accepted=False)
        )
        return True

    def take_from_kernel(self, connection: KernelConnection) -> None:
        """Admit a crash from the kernel itself. Takes ownership of the connection.

        Without a handler the crash is not spooled: if it cannot be recorded, it is lost, and
        counted.
        """
        info = connection.info
        fields = _fields_of(info)
        is_hosts = foreign_mount_ns(connection.namespaces()) is None
        refused = self._refusals.refuses(info.uids[0]) if info.uids and is_hosts else None
        try:
            meta = CoreMeta.from_fields(fields, time.time_ns())
            crash, entry = self._admit(meta, Mode.SOCKET, has_pidfd=True)
        except OSError as e:
            self._counters.dropped(DropReason.STORE_ERROR)
            log.error(
                "a crash (pid %s) cannot be recorded in %s: %s, losing it",
                info.pid,
                self._paths.crashes,
                reason_of(e),
            )
            connection.close()
            return
        except BaseException:
            connection.close()
            raise
        self._ledger.recorded(crash)
        more = {"crash": identified(crash), "refused": refused}
        user = self._user(crash.uid)
        self._dispatcher.submit(
            Job(Kind.SOCKET, entry, [*connection.detach()], self, more, uid=user)
        )

    def add_lost(self, loss: Loss, time_ns: int, token: str) -> None:
        """Record crashes that the kernel reports as not handed over."""
        if self._ledger.id_of_token(token) is not None:
            return
        crash = lost_crash(
            loss,
            time_ns,
            token,
            boot_id=self._boot_id,
            hostname=self._hostname,
            random=secrets.randbits(40),
        )
        self.last_sequence = next_sequence(self.last_sequence, time.time_ns())
        crash = replace(crash, sequence=self.last_sequence)
        for _ in range(min(loss.count, _COUNTED_MAX)):
            self._counters.dropped(DropReason.KERNEL_REFUSED)
        try:
            with entries.create(self._paths, crash) as entry:
                entry.write(crash, sync=True)
        except OSError as e:
            log.error("a crash that was lost cannot be recorded: %s, ignoring", reason_of(e))
            return
        self._ledger.recorded(crash)
        self._ledger.finished(crash.id)

    def _admit(self, meta: CoreMeta, mode: Mode, *, has_pidfd: bool) -> tuple[Crash, Entry]:
        crash = new_crash(
            meta,
            mode=mode,
            boot_id=self._boot_id,
            hostname=self._hostname,
            has_pidfd=has_pidfd,
            random=secrets.randbits(40),
        )
        self.last_sequence = next_sequence(self.last_sequence, time.time_ns())
        crash = replace(crash, sequence=self.last_sequence)
        entry = entries.create(self._paths, crash)
        self._recent[meta.token] = crash.id
        if len(self._recent) > _RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        return crash, entry

    @property
    def is_full(self) -> bool:
        """Return whether the queue for workers is full."""
        return self._dispatcher.queued >= self.queue_max

    def _user(self, uid: int | None) -> int | None:
        return None if uid is None else self._accounts.user_of(uid)

    def allow_import(self) -> None:
        """Start importing from the spool: the index now knows all tokens, so a crash is not taken
        twice.
        """
        self._may_import = True

    def stop_import(self) -> None:
        """Stop importing from the spool: this daemon ends, and the next one continues."""
        self._may_import = False
        self._spooled.clear()

    def import_spool(self) -> None:
        """Look for spooled crashes, and queue as many as there is room for."""
        if self._may_import:
            try:
                names = spool.ready_names(self._paths, time.time_ns())
            except UnavailableError as e:
                log.error("%s, trying again later", e)
                return
            self._spooled = deque(name for name in names if name not in self._importing)
            self.import_more()

    def import_more(self) -> None:
        """Queue more of the spooled crashes, now that there may be room; half of all places stay
        free for crashes whose processes are held.
        """
        while self._spooled and self._dispatcher.queued <= self.queue_max // 2:
            name = self._next_spooled()
            if name is None:
                return
            self._import_one(name)

    def _next_spooled(self) -> str | None:
        """Return the name of the next spooled crash to import, and drop it from the list; None if
        nothing can be imported now.

        When free space is short, crashes are imported one at a time, each only if its core fits
        uncompressed: afterwards its copy in the spool is deleted, which frees more space than the
        import took. If not one fits, and the spool itself takes the missing space, waiting would
        never end: then the largest is imported, and may be cut.
        """
        free = read_space(self._paths.state_dir).free_bytes - sum(self._importing.values())
        if self._importing and free < self.keep_free_bytes + self._spooled_bytes(self._spooled[0]):
            return None  # tried again when the running imports are done
        for name in self._spooled:
            if self._spooled_bytes(name) <= free:
                self._spooled.remove(name)
                return name
        sizes = {name: self._spooled_bytes(name) for name in self._spooled}
        if not self._importing and free + sum(sizes.values()) >= self.keep_free_bytes:
            largest = max(sizes, key=sizes.__getitem__)
            self._spooled.remove(largest)
            return largest
        log.warning("%d crashes stay in the spool until there is free space", len(self._spooled))
        self._spooled.clear()
        return None

    def _spooled_bytes(self, name: str) -> int:
        return spool.core_bytes(self._paths, name)

    @property
    def spool_backlog(self) -> int:
        """Return how many spooled crashes wait or are being imported."""
        return len(self._importing) + len(self._spooled)

    def _import_one(self, name: str) -> None:
        try:
            with spool.SpoolEntry.open(self._paths, name) as spooled:
                meta = CoreMeta.from_fields(spooled.fields(), time.time_ns())
                found = self._adopt(meta, has_proc=bool(spooled.snapshot()))
                if found is None:  # imported before; only its removal was interrupted
                    spool.remove(self._paths, name)
                    return
                descriptor, spooled.fd = spooled.fd, -1  # owned by the job from here on
        except (FileNotFoundError, _NotTakenError):
            return
        except FormatError as e:
            self._set_aside(name, reason_of(e))
            return
        except (OSError, UnavailableError) as e:
            self._counters.dropped(DropReason.STORE_ERROR)
            log.error("spooled crash %s cannot be recorded: %s, keeping it there", name, e)
            return
        crash, entry = found
        self._ledger.recorded(crash)
        self._importing[name] = self._spooled_bytes(name)
        more, user = {"spool": name, "crash": identified(crash)}, self._user(crash.uid)
        job = Job(Kind.IMPORT, entry, [descriptor], self, more, spooled=name, uid=user)
        job.core_bytes = self._importing[name]
        self._dispatcher.submit(job)

    # -- how jobs ended ----------------------------------------------------------------------------

    def finished(self, job: Job) -> None:
        """Note that a crash's entry is final."""
        if job.spooled is not None and job.poisonous:
            self._set_aside(job.spooled, f"workers died of spooled crash {job.spooled}")
        elif job.spooled is not None:
            spool.remove(self._paths, job.spooled)
            self._importing.pop(job.spooled, None)
        self.finished_total += 1
        self._ledger.finished(job.id)
        self.import_more()

    def failed(self, job: Job) -> None:
        """Note that a crash could not be imported; it stays in the spool."""
        if job.spooled is not None:
            self._importing.pop(job.spooled, None)

    def given_back(self, job: Job) -> None:
        """Note that a handler keeps its crash, and will spool it soon."""
        del job
        self._gave_back = True

    def look(self) -> bool:
        """Import crashes of handlers that gave up. Return whether there were any: then the caller
        must look for unfinished crashes, because a handler may have failed to spool its crash.
        """
        gave_back, self._gave_back = self._gave_back, False
        if gave_back:
            self.import_spool()
        return gave_back

    def _set_aside(self, name: str, why: str) -> None:
        self._counters.dropped(DropReason.SPOOL_INVALID)
        self._importing.pop(name, None)
        try:
            gone = spool.set_aside(self._paths, name)
        except OSError as e:
            log.error("%s, and it cannot be set aside: %s, ignoring", why, reason_of(e))
        else:
            log.error("%s, kept as %s.bad", why, name)
            if gone:
                log.warning("%d older ones set aside in the spool were removed", len(gone))

    def _adopt(self, meta: CoreMeta, *, has_proc: bool) -> tuple[Crash, Entry] | None:
        """Find or create the entry for a spooled crash; return None if it was imported before.

        Raises:
            _NotTakenError: its entry belongs to a job that does not know yet that the handler gave
                up; the spool is read again once it does.

        """
        existing = self._recent.get(meta.token) or self._ledger.id_of_token(meta.token)
        if existing is None:
            return self._admit(meta, Mode.SPOOL, has_pidfd=has_proc)
        with contextlib.ExitStack() as owner:
            try:
                entry = owner.enter_context(entries.open_entry(self._paths, existing))
                crash = entry.read()
            except (NotFoundError, FormatError):
                return self._admit(meta, Mode.SPOOL, has_pidfd=has_proc)
            if not crash.state.takes_core:
                return None
            if not entry.try_lock():
                raise _NotTakenError
            identity = meta.identity if has_proc else Identity.NONE
            crash = replace(
                crash, state=State.CAPTURING, capture=Capture(Mode.SPOOL, identity=identity)
            )
            entry.write(crash, sync=False)
            owner.pop_all()  # the caller owns the entry
            return crash, entry

    def recover(self, ids: list[str], reason: str) -> int:
        """Salvage entries in state `capturing` whose writer is gone; return how many must still
        wait.

        An entry whose worker outlived the daemon is still locked, and an entry whose crash is in
        the spool is not imported yet: the caller must look at them again.
        """
        waiting = 0
        try:
            spooled = spool.tokens(self._paths) if ids else set()
        except OSError as e:
            log.error("cannot read %s: %s, trying again later", self._paths.spool, reason_of(e))
            return len(ids)
        for crash_id in ids:
            if self._dispatcher.queued >= self.queue_max:
                waiting += 1  # each queued job takes a descriptor
                continue
            try:
                entry = entries.open_entry(self._paths, crash_id)
            except CrashdError as e:
                log.warning("%s, ignoring", e)
                continue
            try:
                crash = entry.read()
            except (NotFoundError, FormatError) as e:
                log.warning("%s, ignoring", e)
                entry.close()
                continue
            if crash.state is not State.CAPTURING:
                entry.close()
                self._ledger.finished(crash_id)  # by a worker that outlived its daemon
            elif crash.token in spooled or not entry.try_lock():
                entry.close()
                waiting += 1
            else:
                log.warning("crash %s: %s, salvaging", crash_id, reason)
                self._dispatcher.submit(Job(Kind.SALVAGE, entry, [], self, {"reason": reason}))
        return waiting


def identified(crash: Crash) -> dict[str, Any]:
    """Build the part of a crash that is sent to a worker. If the crash was admitted before and its
    record is long, the worker reads the rest again from the spool: a message only has room for what
    identifies the crash.
    """
    return to_json(bounded(crash, LEAST_BYTES)[0])


def _fields_of(info: PidfdInfo) -> dict[str, bytes]:
    """Return, for a crash from the kernel's socket, the fields that otherwise the handler sends.

    The time is that of the connection; signal and thread are in the notes.
    """
    mask = info.coredump_mask or 0
    numbers = {
        "P": info.pid,
        "u": info.uids[0] if info.uids else None,
        "g": info.gids[0] if info.gids else None,
        "s": info.coredump_signal,
        "d": 1 if mask & PIDFD_COREDUMP_USER else 2,
        "seen_ns": time.time_ns(),
        "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    }
    fields = {key: b"%d" % value for key, value in numbers.items() if value is not None}
    return fields | {
        "socket": b"1",
        "identity": Identity.KERNEL.value.encode(),
        "token": f"socket-{secrets.token_hex(12)}".encode(),
    }


class _NotTakenError(Exception):
    """The crash cannot be taken now: the queue is full, or its entry is in use."""
