"""Batches: lines of the records that changed, in one object, and the cores that they announce."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from crashd import __version__
from crashd.daemon.fleet.rules import Rules
from crashd.domain.crash.boundedrecord import RECORD_BYTES, bounded
from crashd.domain.crash.model import Crash, Kind, State, encode, to_json
from crashd.domain.fleet.choice import choose, is_cut
from crashd.domain.fleet.keys import Part, core_key, records_key
from crashd.domain.fleet.lines import (
    LINES_MAX,
    CoreReason,
    DeletedBy,
    Deletion,
    FleetFiles,
    Line,
    build_line,
    next_revision,
)
from crashd.domain.fleet.outcome import Lost
from crashd.edge.fleet.age import encrypt_environ
from crashd.errors import FormatError, NotFoundError
from crashd.store.changes import Gone
from crashd.store.corefile import zstd_writer
from crashd.store.entry import open_entry
from crashd.store.outbox import Batch, CorePart, Made, Outbox, Pending, Sent, WaitingCore
from crashd.store.paths import Paths

BATCH_BYTES: Final = 8 << 20
"""A batch is full with this many bytes of lines, which are in memory."""
_DIGEST_BYTES = 16


@dataclass(slots=True)
class _Draft:
    """A batch in the making."""

    lines: list[bytes] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    done: list[Pending] = field(default_factory=list)
    cores: list[tuple[WaitingCore, str | None]] = field(default_factory=list)
    signatures: Counter[str] = field(default_factory=Counter)
    lost: Counter[Lost] = field(default_factory=Counter)
    size: int = 0


class BatchMaker:
    """Makes batches of one host's crashes."""

    def __init__(self, paths: Paths, host: str, boot_id: str) -> None:
        self._paths = paths
        self._host = host
        self._boot_id = boot_id

    def make(self, outbox: Outbox, rules: Rules, now_ns: int) -> Counter[Lost]:
        """Make a batch of the crashes that have waited longest; return what was lost by it."""
        draft = _Draft()
        waiting = outbox.pending(LINES_MAX)
        for one in waiting:
            if draft.size >= BATCH_BYTES:
                break
            self._add(draft, one, outbox, rules, now_ns)
            draft.done.append(one)
        batch = None
        if draft.lines:
            sequence = outbox.next_sequence(now_ns)
            key = records_key(self._host, now_ns, self._boot_id, sequence)
            since_ns = min(one.since_ns for one in draft.done)
            body = pack_lines(draft.lines)
            batch = Batch(sequence, key, now_ns, len(draft.lines), since_ns, body)
        fallen = outbox.put_batch(batch, draft.made, draft.done, draft.cores)
        if fallen:
            draft.lost[Lost.CORES_FULL] += fallen
        return draft.lost

    def rename(self, outbox: Outbox, batch: Batch, now_ns: int) -> Batch:
        """Give a batch whose hour is over a name of now; return it as it is then."""
        sequence = outbox.next_sequence(now_ns)
        key = records_key(self._host, now_ns, self._boot_id, sequence)
        outbox.rename_batch(batch, sequence, key, now_ns)
        return Batch(sequence, key, now_ns, batch.lines, batch.since_ns, batch.body)

    def _add(self, draft: _Draft, one: Pending, outbox: Outbox, rules: Rules, now_ns: int) -> None:
        """Add the line of a crash, if there is anything new to say."""
        sent = outbox.sent(one.id)
        if one.gone is not Gone.NO:
            self._add_gone(draft, one, sent, rules, now_ns)
            return
        try:
            with open_entry(self._paths, one.id) as entry:
                crash = entry.read()
        except NotFoundError:
            if sent is None:
                draft.lost[Lost.RETENTION] += 1
            return
        except FormatError:
            draft.lost[Lost.UNREADABLE] += 1
            return
        if crash.state is not State.CAPTURING:
            self._add_crash(draft, crash, sent, outbox, rules, now_ns)

    def _add_gone(
        self, draft: _Draft, one: Pending, sent: Sent | None, rules: Rules, now_ns: int
    ) -> None:
        if one.gone is Gone.AGED:
            if sent is None:
                draft.lost[Lost.RETENTION] += 1
            else:
                draft.made.append(Made(one.id, sent, forget=True))
            return
        by = DeletedBy.FLEET if one.gone is Gone.WANTED else DeletedBy.OPERATOR
        if sent is None and by is DeletedBy.OPERATOR:
            return  # the fleet has never heard of it
        revision = next_revision(sent.revision if sent else 0, now_ns)
        deletion = Deletion(by, now_ns)
        line = Line(one.id, revision, None, rules.labels, __version__, deletion=deletion)
        self._put(draft, line)
        draft.made.append(Made(one.id, Sent(revision, b"", CorePart.OPEN), forget=True))

    def _add_crash(
        self,
        draft: _Draft,
        crash: Crash,
        sent: Sent | None,
        outbox: Outbox,
        rules: Rules,
        now_ns: int,
    ) -> None:
        part = sent.core if sent is not None else CorePart.OPEN
        chosen = self._choose(draft, crash, part, outbox, rules, now_ns)
        files, part_now = self._files(crash, part, chosen, rules)
        before = FleetFiles(**json.loads(sent.files)) if sent is not None else FleetFiles()
        if part is CorePart.SENT:  # by the settings of that time
            files = replace(before, log=before.log or files.log)
        digest = digest_of(crash, files)
        if sent is not None and sent.digest == digest and part_now is part:
            return
        revision = next_revision(sent.revision if sent else 0, now_ns)
        environ_age = None
        if rules.encrypts and crash.environ is not None:
            environ_age = encrypt_environ(crash.environ, rules.recipients)
        crash, _ = bounded(crash, RECORD_BYTES)
        self._put(
            draft,
            Line(crash.id, revision, crash, rules.labels, __version__, files, environ_age),
        )
        kept = json.dumps(asdict(files))
        draft.made.append(Made(crash.id, Sent(revision, digest, part_now, kept)))
        new_core = part_now is CorePart.SENT and part is not CorePart.SENT
        new_log = files.log is not None and before.log is None
        if new_core or new_log:
            core = WaitingCore(
                crash.id,
                now_ns,
                files.core if new_core else None,
                files.log if new_log else None,
            )
            signature = crash.signature if new_core else None
            draft.cores.append((core, signature))
            if signature is not None:
                draft.signatures[signature] += 1

    def _choose(
        self,
        draft: _Draft,
        crash: Crash,
        part: CorePart,
        outbox: Outbox,
        rules: Rules,
        now_ns: int,
    ) -> CoreReason | bool | None:
        return choose(
            crash,
            rules.choice,
            lambda signature: outbox.cores_of(signature) + draft.signatures[signature],
            wanted=part is CorePart.WANTED,
            now_ns=now_ns,
        )

    def _files(
        self, crash: Crash, part: CorePart, chosen: CoreReason | bool | None, rules: Rules
    ) -> tuple[FleetFiles, CorePart]:
        """Say which objects a crash has, and what is decided of its core by that."""
        encrypted = rules.encrypts
        log = None
        if crash.kind is Kind.KERNEL and (crash.kernel or {}).get("log_file"):
            log = core_key(self._host, crash.id, encrypted=encrypted, part=Part.LOG)
        if part is CorePart.LOST:
            return FleetFiles(None, log, 0, CoreReason.NO_CORE), part
        if chosen is True or part is CorePart.SENT:
            cut = is_cut(crash, rules.choice)
            size = 0 if cut else crash.core.stored_bytes
            key = core_key(self._host, crash.id, encrypted=encrypted)
            return FleetFiles(key, log, size, None, cut), CorePart.SENT
        if chosen is None:
            return FleetFiles(None, log), CorePart.OPEN
        reason = CoreReason(str(chosen))
        return FleetFiles(None, log, 0, reason), CorePart.KEPT

    def _put(self, draft: _Draft, line: Line) -> None:
        raw = build_line(line)
        draft.lines.append(raw)
        draft.size += len(raw)


def digest_of(crash: Crash, files: FleetFiles) -> bytes:
    """Compute what a record's line says, without what changes by itself: a key that an update of
    crashd adds, empty, is no change.
    """
    document = {key: value for key, value in to_json(crash).items() if value not in _EMPTY}
    text = encode({**document, "fleet": [files.core, files.log, files.reason]})
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


_EMPTY: tuple[Any, ...] = (None, "", [], {}, False)


def pack_lines(lines: list[bytes]) -> bytes:
    """Pack lines into the content of an object."""
    target = io.BytesIO()
    with zstd_writer(target) as packed:
        for line in lines:
            packed.write(line + b"\n")
    return target.getvalue()
