"""What the fleet asks of this host: fetched when it changed, checked, and obeyed."""

import logging
import os
import random
from dataclasses import dataclass

from crashd.domain.fleet.keys import SIGNATURES, want_key
from crashd.domain.fleet.orders import Answer, Get
from crashd.domain.fleet.outcome import Failure, What
from crashd.domain.fleet.policy import (
    SIGNATURES_BYTES,
    WANT_BYTES,
    Want,
    parse_signatures,
    parse_want,
)
from crashd.errors import CrashdError, FormatError, NotFoundError
from crashd.store.catalog import Catalog
from crashd.store.changes import Gone
from crashd.store.corefile import unzstd
from crashd.store.index import Index
from crashd.store.outbox import CorePart, Outbox
from crashd.store.paths import Paths

log = logging.getLogger("crashd.fleet")

POLL_SECONDS = 300.0
FETCH_SECONDS = 120.0
_NO_POLICY = frozenset({Failure.MISSING, Failure.CREDENTIALS})
"""A store that may not be listed says so of an object that is not there."""


@dataclass(slots=True)
class _Source:
    """One of the fleet's policies."""

    key: str
    max_bytes: int
    etag_name: str


class Policies:
    """Knows when to ask for which policy, and what follows from it."""

    def __init__(self, paths: Paths, host: str, outbox: Outbox) -> None:
        self._paths = paths
        self._outbox = outbox
        self._sources = (
            _Source(SIGNATURES, SIGNATURES_BYTES, "etag signatures"),
            _Source(want_key(host), WANT_BYTES, "etag want"),
        )
        self._next = 0
        self.due_s = 0.0
        """When to ask next, by time.monotonic()."""
        self.enough = self._recall()
        """Signatures of which the fleet has enough cores."""

    def _recall(self) -> frozenset[str]:
        try:
            return parse_signatures(self._outbox.recall("signatures") or b'{"version":1}')
        except FormatError:
            return frozenset()

    def ask(self, job: int) -> Get:
        """Return the order that fetches the next policy."""
        source = self._sources[self._next]
        etag = self._outbox.recall(source.etag_name)
        return Get(job, What.POLICY, source.key, etag, source.max_bytes)

    def take(self, answer: Answer, fd: int, index: Index, now_s: float, now_ns: int) -> str | None:
        """Take the answer, with the file that it fills; return what failed, in one line."""
        source = self._sources[self._next]
        self._next = (self._next + 1) % len(self._sources)
        if self._next == 0:
            self.due_s = now_s + POLL_SECONDS * random.uniform(0.8, 1.2)
        if answer.failure is not None:
            return None if answer.failure in _NO_POLICY else answer.text
        if not answer.fetched:
            return None
        try:
            data = os.pread(fd, min(answer.bytes, source.max_bytes), 0)
            if source.key == SIGNATURES:
                self._take_signatures(data)
                done = True
            else:
                done = self._obey(parse_want(data), index, now_ns)
        except FormatError as e:
            return f"{source.key}: {e}"
        if done:
            self._outbox.remember(source.etag_name, answer.etag)
        return None

    def _take_signatures(self, data: bytes) -> None:
        raw = unzstd(data, SIGNATURES_BYTES + 1)
        self.enough = parse_signatures(raw)
        self._outbox.remember("signatures", raw)

    def _obey(self, want: Want, index: Index, now_ns: int) -> bool:
        """Do what is wanted; return whether all of it is done."""
        for crash_id in want.cores:
            sent = self._outbox.sent(crash_id)
            if sent is not None and sent.core not in (CorePart.SENT, CorePart.WANTED):
                self._outbox.want_core(crash_id, now_ns)
        catalog, deleted, done = Catalog(self._paths, index), 0, True
        for crash_id in want.deleted:
            try:
                catalog.delete([crash_id], Gone.WANTED)
                deleted += 1
            except NotFoundError:  # say that it is gone
                self._outbox.note(crash_id, Gone.WANTED, now_ns)
            except (CrashdError, OSError) as e:
                log.warning(
                    "crash %s was not deleted as the fleet asks: %s, trying again", crash_id, e
                )
                done = False
        if deleted:
            log.warning("%d crashes were deleted, as the fleet asks", deleted)
        return done
