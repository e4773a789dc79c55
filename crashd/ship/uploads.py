"""One order carried out: a file to an object, or an object to a file."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from crashd.base.files import write_all
from crashd.domain.fleet.orders import Answer, Get, Put
from crashd.domain.fleet.outcome import Failure, What
from crashd.edge.fleet import age
from crashd.edge.fleet.objects import PART_BYTES, ObjectError, Objects
from crashd.errors import CrashdError, reason_of
from crashd.ship.pace import Pace
from crashd.store.corefile import zstd_writer

RECORDS_MAX = 64 << 20
_PACED_BYTES = 256 << 10


class AbandonedError(CrashdError):
    """The daemon is gone: what it asked for does not matter any more."""


@dataclass(frozen=True, slots=True)
class Uploader:
    """Where to send, and how; for several threads."""

    objects: Objects
    """For what is small: few retries, because the daemon has its own."""
    patient: Objects
    """For cores: their parts are repeated for minutes before an upload fails."""
    pace: Pace
    recipients: tuple[age.Recipient, ...]
    is_abandoned: Callable[[], bool]

    def put(self, order: Put, fd: int, tell: Callable[[Answer], None]) -> Answer:
        """Send a file, whose descriptor stays the caller's; the answer says how it ended."""
        try:
            size = self._put(order, fd, tell)
        except (CrashdError, OSError, MemoryError) as e:
            return failed(order.job, e)
        return Answer(order.job, True, size)

    def _put(self, order: Put, fd: int, tell: Callable[[Answer], None]) -> int:
        size = os.fstat(fd).st_size
        objects = self.objects if order.what is What.RECORDS else self.patient
        if order.what is What.RECORDS or (size <= PART_BYTES and not order.pack):
            data = _read_all(fd, min(size, RECORDS_MAX))
            if order.encrypt:
                data = age.encrypt(data, self.recipients)
            self.pace.wait(len(data))
            objects.put(order.key, data)
            return len(data)
        sent = [0]
        objects.put_parts(order.key, self._parts(order, fd, sent, tell))
        return sent[0]

    def _parts(
        self, order: Put, fd: int, sent: list[int], tell: Callable[[Answer], None]
    ) -> Iterator[bytes]:
        """Yield what is to be sent, as it may be sent."""
        os.lseek(fd, 0, os.SEEK_SET)
        with (
            open(fd, "rb", closefd=False) as source,
            _Pipes(source, order, self.recipients) as pieces,
        ):
            while part := pieces.read(PART_BYTES):
                for at in range(0, len(part), _PACED_BYTES):
                    if self.is_abandoned():
                        raise AbandonedError("the daemon is gone")
                    self.pace.wait(min(_PACED_BYTES, len(part) - at))
                sent[0] += len(part)
                yield part
                tell(Answer(order.job, False, sent[0]))

    def get(self, order: Get, fd: int) -> Answer:
        """Fetch an object into a file, whose descriptor stays the caller's."""
        try:
            found = self.objects.get(order.key, order.max_bytes, order.etag)
            if found is None:
                return Answer(order.job, True)
            data, etag = found
            write_all(fd, data)
        except (CrashdError, OSError, MemoryError) as e:
            return failed(order.job, e)
        return Answer(order.job, True, len(data), etag[:1000], fetched=True)


def failed(job: int, error: BaseException) -> Answer:
    """Build the answer for what failed."""
    failure = error.failure if isinstance(error, ObjectError) else Failure.LOCAL
    return Answer(job, True, failure=failure, text=reason_of(error))


def _read_all(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (part := os.pread(fd, size - len(data), len(data))):
        data += part
    return bytes(data)


class _Pipes:
    """What comes out of packing and encrypting a file, as a file to read from."""

    def __init__(
        self, source: IO[bytes], order: Put, recipients: tuple[age.Recipient, ...]
    ) -> None:
        self._order = order
        self._recipients = recipients
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._files = [source]

    def __enter__(self) -> "_Pipes":
        if self._order.pack:
            self._through(_pack)
        if self._order.encrypt:
            recipients = self._recipients
            self._through(lambda source, to: age.encrypt_stream(source, to, recipients))
        return self

    def _through(self, work: Callable[[IO[bytes], IO[bytes]], None]) -> None:
        reading, writing = os.pipe()
        source, target = self._files[-1], os.fdopen(writing, "wb")
        self._files.append(os.fdopen(reading, "rb"))

        def run() -> None:
            try:
                with suppress(BrokenPipeError), target:
                    work(source, target)
            except BaseException as e:
                self._errors.append(e)

        self._threads.append(threading.Thread(target=run, name="pipe", daemon=True))
        self._threads[-1].start()

    def read(self, size: int) -> bytes:
        """Read exactly so much, or what is left.

        Raises:
            OSError: the file cannot be read, or not be encrypted: it does not look shorter then.

        """
        data = self._files[-1].read(size)
        if len(data) < size and self._threads:
            for thread in self._threads:
                thread.join()
            if self._errors:
                raise OSError(f"{self._order.key}: {reason_of(self._errors[0])}")
        return data

    def __exit__(self, *details: object) -> None:
        # from the end: a program that writes into a closed pipe ends
        for file, thread in zip(self._files[:0:-1], self._threads[::-1], strict=True):
            file.close()
            thread.join()


def _pack(source: IO[bytes], target: IO[bytes]) -> None:
    with zstd_writer(target) as packed:
        while data := source.read(1 << 20):
            packed.write(data)
