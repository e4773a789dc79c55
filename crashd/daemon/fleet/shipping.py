"""Sends what changed to the fleet's object storage, in a thread of its own: takes changes from the
index, makes batches, and hands files to crashd-ship, which alone has the network.

The crash path knows nothing of it. What must not be lost is in the index (which rows changed) and
the outbox (what was made of that) before it is sent; an object counts as stored when crashd-ship
has said so. One idea despite its length: one loop, and what it waits for.
"""

import contextlib
import logging
import os
import random
import select
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

from crashd.base.files import read_file
from crashd.daemon.after.captures import Captures
from crashd.daemon.fleet.batches import BatchMaker
from crashd.daemon.fleet.corefiles import OpenedFile, open_file
from crashd.daemon.fleet.policies import FETCH_SECONDS, Policies
from crashd.daemon.fleet.rules import Rules
from crashd.daemon.fleet.shiplink import ShipLink, bounded_file, content_file
from crashd.domain.fleet.hostid import host_id
from crashd.domain.fleet.lines import LINES_MAX
from crashd.domain.fleet.orders import Answer, Put
from crashd.domain.fleet.outcome import Failure, Lost, What, retry_seconds
from crashd.edge.fleet.age import parse_recipients
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, FormatError, UnavailableError, reason_of
from crashd.store import changes
from crashd.store.index import Index
from crashd.store.outbox import Batch, WaitingCore, open_outbox
from crashd.store.paths import Paths

log = logging.getLogger("crashd.fleet")

POLL_SECONDS: Final = 1.0
BATCH_SECONDS: Final = 5.0
"""A single crash waits this long, so that its analysis is in the same object."""
BUSY_SECONDS: Final = 20.0
"""While crash follows crash, a batch may wait this long to become full: fewer requests."""
BUSY_LINES: Final = 16
PATIENCE_SECONDS: Final = 30.0
"""While crashes are being captured, nothing is made for so long: it would take their CPU time."""
BATCHES_MAX: Final = 4
"""Batches that are made and not stored; what changes meanwhile waits unmade, its newest state."""
RENAME_NS: Final = 15 * 60 * 10**9
JOB_SECONDS: Final = 600.0
"""Without a word from crashd-ship for so long, it is given up."""
COMPLAIN_SECONDS: Final = 3600.0
SAY_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Job:
    """An order under way."""

    number: int
    what: What
    heard_s: float
    batch: Batch | None = None
    core: WaitingCore | None = None
    opened: OpenedFile | None = None
    fd: int = -1

    def close(self) -> None:
        """Close the files."""
        if self.opened is not None:
            self.opened.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(slots=True)
class _State:
    """What `describe` tells of the thread; replaced, never changed, by the thread alone."""

    waiting: int = 0
    oldest_ns: int | None = None
    cores: int = 0
    stored_ns: int | None = None
    failure: str | None = None
    text: str = ""


class Shipping:
    """The thread; any thread may call its methods."""

    def __init__(self, paths: Paths, exporter: Exporter, boot_id: str, captures: Captures) -> None:
        self._paths = paths
        self._exporter = exporter
        self._boot_id = boot_id
        self._captures = captures
        self._wanted: Rules | None = None
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._state = _State()

    def configure(self, rules: Rules | None) -> None:
        """Take new rules, soon; None sends nothing."""
        if rules != self._wanted:
            self._wanted = rules
            self._changed.set()
            self._wake()

    def start(self) -> None:
        """Start the thread; the index must be there."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if it runs: what it has not sent waits in the outbox."""
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_out, b"\0")

    def describe(self) -> dict[str, Any] | None:
        """Return what `crashctl status` prints; None if nothing is sent."""
        rules, state = self._wanted, self._state
        if rules is None:
            return None
        return {
            "url": rules.ship.url,
            "waiting": state.waiting,
            "oldest_ns": state.oldest_ns,
            "cores_waiting": state.cores,
            "stored_ns": state.stored_ns,
            "failure": state.failure,
            "failure_text": state.text,
            "lost": self._exporter.ship_losses(),
        }

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._changed.clear()
            rules = self._wanted
            try:
                if rules is None:
                    forget_fleet(self._paths)
                    self._sleep(None)
                    continue
                with Voyage(
                    self._paths, self._exporter, self._boot_id, self._captures, rules
                ) as voyage:
                    failures = 0
                    while not self._stopping.is_set() and not self._changed.is_set():
                        voyage.step()
                        self._state = voyage.state
                        self._sleep(voyage)
            except Exception as e:  # boundary: what was not sent is in the outbox
                known = isinstance(e, CrashdError | OSError)
                failures += 1
                self._state = replace(self._state, failure=Failure.LOCAL.value, text=reason_of(e))
                log.warning("fleet: %s, trying again", e, exc_info=not known)
                self._exporter.ship_failed(Failure.LOCAL)
                self._changed.wait(retry_seconds(failures, random.random()))

    def _sleep(self, voyage: "Voyage | None") -> None:
        """Wait until there is something to do, or for a moment."""
        sources: list[int] = [self._wake_in]
        if voyage is not None and voyage.link is not None:
            sources.append(voyage.link.fileno())
        seconds = None if voyage is None else 0.05 if voyage.hurries else POLL_SECONDS
        select.select(sources, [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_in, 4096)


class Voyage:
    """Sending by one set of rules; for the thread alone. Owns index, outbox and connection."""

    def __init__(
        self, paths: Paths, exporter: Exporter, boot_id: str, captures: Captures, rules: Rules
    ) -> None:
        """Begin.

        Raises:
            CrashdError: the host has no id, a key is wrong, or the outbox cannot be used.

        """
        self._paths = paths
        self._exporter = exporter
        self._captures = captures
        host = read_host_id(paths)
        recipients = tuple(parse_recipients(rules.ship.recipients)) if rules.encrypts else ()
        self._rules = replace(rules, recipients=recipients)
        self.outbox, aside = open_outbox(paths.outbox)
        if aside is not None:
            log.error("the outbox is damaged; it is kept as %s, and all is sent again", aside)
        self._index: Index | None = None
        self._maker = BatchMaker(paths, host, boot_id)
        self._policies = Policies(paths, host, self.outbox)
        self._take_policy()
        self.link: ShipLink | None = None
        self._ready = False
        self._jobs: dict[int, _Job] = {}
        self._number = 0
        self._failures = 0
        self._again_s = 0.0
        self._core_again_s = 0.0
        self._core_tries: Counter[str] = Counter()
        self._busy_until_s = 0.0
        self._complained_s: dict[Failure, float] = {}
        self.state = _State()
        self.hurries = False
        """Whether there is more to do at once."""
        self._unsaid: Counter[str] = Counter()
        self._said_s = -SAY_SECONDS
        exporter.ship_lost(self.outbox.lost({}))

    def __enter__(self) -> "Voyage":
        return self

    def __exit__(self, *details: object) -> None:
        self._part()
        if self._index is not None:
            self._index.close()
        self.outbox.close()

    def step(self) -> None:
        """Do what can be done now, without waiting for the network."""
        index = self._current_index()
        self._hear(index)
        if taken := changes.read_changes(index):
            fallen = self.outbox.take(taken, time.time_ns())
            changes.drop_changes(index, taken)
            self._lose({Lost.OUTBOX_FULL: fallen})
        self._say_lost()
        self._make_batch()
        self._send()
        self._look_late()
        waiting, oldest_ns = self.outbox.waiting()
        self.state.waiting, self.state.oldest_ns = waiting, oldest_ns
        self.state.cores = self.outbox.cores_waiting()
        age_ns = 0 if oldest_ns is None else max(0, time.time_ns() - oldest_ns)
        self._exporter.ship_waiting(waiting, age_ns / 1e9)

    def _current_index(self) -> Index:
        """Return the index; see that it notes what changes."""
        if self._index is not None and not self._index.is_current():
            self._index.close()
            self._index = None
        if self._index is None:
            self._index = Index.open(self._paths.index)
        if not changes.is_watched(self._index):
            changes.watch(self._index)
            self.outbox.age_out(frozenset(self._index.ids()), time.time_ns())
        return self._index

    def _lose(self, counts: "dict[Lost, int] | Counter[Lost]") -> None:
        """Count what is lost, over restarts; and say it."""
        news = {reason.value: count for reason, count in counts.items() if count}
        if news:
            self._exporter.ship_lost(self.outbox.lost(news))
        self._unsaid.update(news)

    def _say_lost(self) -> None:
        now_s = time.monotonic()
        if self._unsaid and now_s - self._said_s >= SAY_SECONDS:
            self._said_s = now_s
            text = ", ".join(f"{count} ({reason})" for reason, count in self._unsaid.items())
            log.error("fleet: records or cores that will not be sent: %s", text)
            self._unsaid.clear()

    # -- batches -----------------------------------------------------------------------------------

    def _make_batch(self) -> None:
        count, since_ns = self.outbox.pending_count()
        self.hurries = False
        if since_ns is None or self.outbox.batches() >= BATCHES_MAX:
            return
        now_s, now_ns = time.monotonic(), time.time_ns()
        wait_s = BUSY_SECONDS if now_s < self._busy_until_s else BATCH_SECONDS
        # a clock that was set back must not hold a batch
        waited_s = (now_ns - since_ns) / 1e9
        if count < LINES_MAX and -wait_s <= waited_s < wait_s:
            return
        if self._captures.under_way and 0 <= waited_s < PATIENCE_SECONDS:
            return
        if count >= BUSY_LINES:
            self._busy_until_s = now_s + 2 * BUSY_SECONDS
        self._lose(self._maker.make(self.outbox, self._rules, now_ns))
        self.hurries = count >= 2 * LINES_MAX

    def _send(self) -> None:
        """Give crashd-ship what it can take now: one order of each kind."""
        now_s = time.monotonic()
        if now_s < self._again_s:
            return
        under_way = {job.what for job in self._jobs.values()}
        batch = None if What.RECORDS in under_way else self.outbox.oldest_batch()
        core = None
        if not under_way & {What.CORE, What.LOG} and now_s >= self._core_again_s:
            core = self.outbox.oldest_core()
        ask = What.POLICY not in under_way and now_s >= self._policies.due_s
        if batch is None and core is None and not ask:
            return
        try:
            link = self._connected()
            if link is None:
                return
            if batch is not None:
                self._send_batch(link, batch)
            if core is not None:
                self._send_core(link, core)
            if ask:
                self._ask_policy(link)
        except UnavailableError as e:
            self._part()
            self._fail(Failure.SHIPPER, str(e))

    def _connected(self) -> ShipLink | None:
        """Return the connection once crashd-ship has taken the settings."""
        if self.link is None:
            self.link = ShipLink(self._paths.ship_socket)
            self._ready = False
            self.link.send(self._rules.ship)
        return self.link if self._ready else None

    def _send_batch(self, link: ShipLink, batch: Batch) -> None:
        now_ns = time.time_ns()
        if not -RENAME_NS < now_ns - batch.named_ns < RENAME_NS:
            batch = self._maker.rename(self.outbox, batch, now_ns)
        job = self._begin(What.RECORDS)
        job.batch, job.fd = batch, content_file(batch.body)
        link.send(Put(job.number, What.RECORDS, batch.key), job.fd)

    def _send_core(self, link: ShipLink, core: WaitingCore) -> None:
        try:
            opened = open_file(self._paths, core, self._rules)
        except (CrashdError, OSError) as e:
            if isinstance(e, FormatError):
                log.warning("fleet: the core of %s cannot be sent: %s", core.id, reason_of(e))
            self.outbox.core_done(core.id, lost=core.key is not None, now_ns=time.time_ns())
            self._lose({Lost.CORE_DELETED: 1})
            return
        job = self._begin(opened.what)
        job.core, job.opened = core, opened
        encrypt = opened.key.endswith(".age")
        link.send(Put(job.number, opened.what, opened.key, encrypt, opened.pack), opened.fd)

    def _ask_policy(self, link: ShipLink) -> None:
        job = self._begin(What.POLICY)
        order = self._policies.ask(job.number)
        job.fd = bounded_file(order.max_bytes)
        link.send(order, job.fd)

    def _begin(self, what: What) -> _Job:
        self._number += 1
        job = _Job(self._number, what, time.monotonic())
        self._jobs[job.number] = job
        return job

    # -- answers -----------------------------------------------------------------------------------

    def _hear(self, index: Index) -> None:
        """Take all answers that are there."""
        while self.link is not None:
            try:
                answer = self.link.receive()
            except UnavailableError as e:
                self._part()
                self._fail(Failure.SHIPPER, str(e))
                return
            if answer is None:
                return
            if answer.job == 0:
                self._take_settings(answer)
                continue
            job = self._jobs.get(answer.job)
            if job is None:
                continue
            job.heard_s = time.monotonic()
            if answer.over:
                del self._jobs[answer.job]
                try:
                    self._finish(job, answer, index)
                finally:
                    job.close()

    def _take_settings(self, answer: Answer) -> None:
        self._ready = answer.failure is None
        if answer.failure is not None:
            self._part()
            self._fail(answer.failure, answer.text)

    def _finish(self, job: _Job, answer: Answer, index: Index) -> None:
        if job.what is What.POLICY:
            self._finish_policy(job, answer, index)
        elif answer.failure is not None:
            self._finish_failed(job, answer.failure, answer.text)
        else:
            self._succeed()
            lines = 1
            if job.batch is not None:
                self.outbox.batch_stored(job.batch.sequence)
                lines = job.batch.lines
            elif job.core is not None:
                self._finish_core(job.core, job.what)
            self._exporter.shipped(job.what, lines, answer.bytes)

    def _finish_policy(self, job: _Job, answer: Answer, index: Index) -> None:
        now_s, now_ns = time.monotonic(), time.time_ns()
        failed = self._policies.take(answer, job.fd, index, now_s, now_ns)
        self._take_policy()
        if failed is not None:
            self._fail(answer.failure or Failure.REFUSED, failed)
        elif answer.failure is None:
            self._exporter.shipped(What.POLICY, 1, answer.bytes)

    def _take_policy(self) -> None:
        choice = replace(self._rules.choice, enough=self._policies.enough)
        self._rules = replace(self._rules, choice=choice)

    def _finish_core(self, core: WaitingCore, what: What) -> None:
        self._core_tries.pop(core.id, None)
        if what is What.CORE and core.log_key is not None:
            self.outbox.core_is_stored(core.id)  # its log comes next
        else:
            self.outbox.core_done(core.id, lost=False, now_ns=time.time_ns())

    def _finish_failed(self, job: _Job, failure: Failure, text: str) -> None:
        core = job.core
        if core is not None and failure in (Failure.LOCAL, Failure.REFUSED):
            self._core_tries[core.id] += 1
            tries = self._core_tries[core.id]
            self.outbox.core_later(core.id)  # others may do better
            self._core_again_s = time.monotonic() + retry_seconds(tries, random.random())
            self._complain(failure, text)
            return
        self._fail(failure, text)

    def _look_late(self) -> None:
        """Give crashd-ship up when it says nothing about an order."""
        now_s = time.monotonic()
        for job in self._jobs.values():
            limit_s = FETCH_SECONDS * 5 if job.what is What.POLICY else JOB_SECONDS
            if now_s - job.heard_s > limit_s:
                self._part()
                self._fail(Failure.SHIPPER, "crashd-ship does not answer")
                return

    def _part(self) -> None:
        """Close the connection; what was under way begins again."""
        for job in self._jobs.values():
            job.close()
        self._jobs.clear()
        if self.link is not None:
            self.link.close()
            self.link = None
        self._ready = False

    def _succeed(self) -> None:
        if self.state.failure is not None:
            log.info("fleet: sending again, after %d failures", self._failures)
        self._failures, self._again_s = 0, 0.0
        self._complained_s.clear()
        self.state.failure, self.state.text = None, ""
        self.state.stored_ns = time.time_ns()

    def _fail(self, failure: Failure, text: str) -> None:
        """Wait before anything else is sent."""
        self._failures += 1
        self._again_s = time.monotonic() + retry_seconds(self._failures, random.random())
        self._complain(failure, text)

    def _complain(self, failure: Failure, text: str) -> None:
        """Count a failure, and say it: once, then each hour."""
        self._exporter.ship_failed(failure)
        self.state.failure, self.state.text = failure.value, text
        now_s = time.monotonic()
        if now_s - self._complained_s.get(failure, -COMPLAIN_SECONDS) >= COMPLAIN_SECONDS:
            self._complained_s[failure] = now_s
            log.warning("fleet: %s, trying again", text)


def read_host_id(paths: Paths) -> str:
    """Read the id that this host has in its fleet.

    Raises:
        CrashdError: it has no machine id.

    """
    try:
        text = read_file(paths.machine_id, 100).decode("ascii", "replace")
    except OSError as e:
        raise UnavailableError(
            f"cannot read {paths.machine_id}, by which the fleet knows this host: {reason_of(e)}"
        ) from e
    return host_id(text)


def forget_fleet(paths: Paths) -> None:
    """Have the index note changes no more: nothing is sent."""
    with contextlib.suppress(CrashdError), Index.open(paths.index) as index:
        changes.unwatch(index)
