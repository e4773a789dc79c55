"""How crashes come in: from the handler, from the spool, and from a daemon that died; one path for
all.

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
"""Tokens that are remembered here, for the index is written later: twice as many as can wait at the
socket.
"""


class Refusals(Protocol):
    """Knows what is not worth to be taken."""

    def refuses(self, uid: int) -> str | None:
        """Return why nothing of a user's crashes is kept now; None when it is."""


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
        """What is on its way in, and the bytes that its core has in the spool."""
        self._spooled: deque[str] = deque()
        self._recent: dict[str, str] = {}
        self._gave_back = False
        self.finished_total = 0
        self.last_sequence = 0
        """Of the crashes so far."""
        self.queue_max = 128
        self.keep_free_bytes = 0

    def take(self, connection: Connection, handoff: Handoff) -> bool:
        """Admit a crash from the handler; False when the handler must keep it. Owns both from here
        on.
        """
        try:
            meta = CoreMeta.from_fields(handoff.fields, time.time_ns())
            if self.is_full:
                self._counters.dropped(DropReason.QUEUE_FULL)
                if not self._dispatcher.make_room(self._user(meta.uid)):
                    log.warning("%d crashes wait for a worker, spooling", self._dispatcher.queued)
                    raise _NotTakenError
            if meta.token in self._recent:  # we were stopped meanwhile, and it came by the spool
                log.info("crash %s was spooled before it was accepted", self._recent[meta.token])
                raise _NotTakenError
            crash, entry = self._admit(meta, Mode.PIPE, has_pidfd=handoff.pidfd is not None)
            # from now on the handler waits as long as we live; one that gave up before spools it,
            # and the entry is found again by its token
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
            handoff.close()  # whatever went wrong: the crashed process is not held for it
            connection.close()
            raise
        descriptors = [handoff.core, connection.detach()]  # the job's from here on
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
        """Admit a crash from the kernel itself. Owns the connection from here on.

        Nobody spools it: one that cannot even be recorded is lost, and counted.
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
        """Record what the kernel says it did not hand over."""
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
        """Whether no more crashes can wait for a worker."""
        return self._dispatcher.queued >= self.queue_max

    def _user(self, uid: int | None) -> int | None:
        return None if uid is None else self._accounts.user_of(uid)

    def allow_import(self) -> None:
        """Begin to take from the spool: the index knows all tokens, so that nothing comes in
        twice.
        """
        self._may_import = True

    def stop_import(self) -> None:
        """Take no more from the spool: the daemon ends, and the next one goes on."""
        self._may_import = False
        self._spooled.clear()

    def import_spool(self) -> None:
        """Look for what the handler spooled, and queue as much as there is room for."""
        if self._may_import:
            try:
                names = spool.ready_names(self._paths, time.time_ns())
            except UnavailableError as e:
                log.error("%s, trying again later", e)
                return
            self._spooled = deque(name for name in names if name not in self._importing)
            self.import_more()

    def import_more(self) -> None:
        """Queue more of what was found in the spool, now that there may be room: half of all
        places stay for crashes whose processes are held.
        """
        while self._spooled and self._dispatcher.queued <= self.queue_max // 2:
            name = self._next_spooled()
            if name is None:
                return
            self._import_one(name)

    def _next_spooled(self) -> str | None:
        """Choose what to take in next; None where nothing can be now.

        Where free space is short one goes after another, if what is left holds its core as it is:
        then its copy in the spool goes, so that there is more than before. To wait for space that
        the spool itself takes would be for ever: the largest comes in cut, at the very last.
        """
        free = read_space(self._paths.state_dir).free_bytes - sum(self._importing.values())
        if self._importing and free < self.keep_free_bytes + self._spooled_bytes(self._spooled[0]):
            return None  # asked again when they are in
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
        """How many spooled crashes wait or are on their way in."""
        return len(self._importing) + len(self._spooled)

    def _import_one(self, name: str) -> None:
        try:
            with spool.SpoolEntry.open(self._paths, name) as spooled:
                meta = CoreMeta.from_fields(spooled.fields(), time.time_ns())
                found = self._adopt(meta, has_proc=bool(spooled.snapshot()))
                if found is None:  # was taken in before, and only its removal was cut short
                    spool.remove(self._paths, name)
                    return
                descriptor, spooled.fd = spooled.fd, -1  # the job's now
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
        """Note that a crash could not be taken from the spool, where it still is."""
        if job.spooled is not None:
            self._importing.pop(job.spooled, None)

    def given_back(self, job: Job) -> None:
        """Note that a handler keeps its crash, which is in the spool soon."""
        del job
        self._gave_back = True

    def look(self) -> bool:
        """Take in what handlers kept that gave up; return whether there were any, for then one
        whose handler did not come to it either is to be looked for.
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
        """Find or make the entry for a spooled crash; None when it was taken in before.

        Raises:
            _NotTakenError: its entry belongs to a job that does not know yet that the handler gave
                up; when it does, the spool is looked at again.

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
            owner.pop_all()  # the entry is the caller's
            return crash, entry

    def recover(self, ids: list[str], reason: str) -> int:
        """Salvage entries in state `capturing` whose writer is gone; return how many must still
        wait.

        One whose worker outlived the daemon is still locked, and one that the handler spools by
        itself is still to come: they are to be looked at again.
        """
        waiting = 0
        try:
            spooled = spool.tokens(self._paths) if ids else set()
        except OSError as e:
            log.error("cannot read %s: %s, trying again later", self._paths.spool, reason_of(e))
            return len(ids)
        for crash_id in ids:
            if self._dispatcher.queued >= self.queue_max:
                waiting += 1  # each has a descriptor
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
    """Build what a worker is told of a crash. One that was admitted before, and whose record is
    long, is read again from the spool: a message holds what identifies it.
    """
    return to_json(bounded(crash, LEAST_BYTES)[0])


def _fields_of(info: PidfdInfo) -> dict[str, bytes]:
    """Tell of a crash from the kernel's socket what the handler's arguments tell of others.

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
    """Not now: the queue is full, or the entry is in use."""
