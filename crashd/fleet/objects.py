"""The objects of hosts, listed and read ahead in threads of their own."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from crashd.edge.fleet.bucket import PAGE, Bucket, Found
from crashd.errors import (
    CrashdError,
    FormatError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from crashd.fleet.cursor import Cursor, Look
from crashd.fleet.rows import Refused
from crashd.fleet.unpack import OBJECT_BYTES

THREADS = 16
AHEAD = 64
"""Objects that are read ahead."""
AHEAD_BYTES = 64 << 20
"""And their size together, unless one alone is larger: a host can write many of OBJECT_BYTES."""
TURN = 200
"""Objects of one host that are read before those of other hosts are."""
TURN_BYTES = 1 << 20
"""And so many bytes, packed: about 4000 records."""
PAGES = 5
"""Pages of old objects that are listed in a turn, at most."""
NOT_READ = (UnavailableError, PermissionDeniedError, FormatError)
"""Either the bucket is away, or it has something of one host that it does not list or give out."""


@dataclass(slots=True)
class Survey:
    """The new objects of a host, listed turn by turn."""

    look: Look
    some: list[Found]
    """Those of its next turn."""
    rest: Iterator[Found | None]
    """Further ones; None for a page without any."""
    is_listed: bool = False
    """Whether there are no further ones."""
    error: CrashdError | None = None
    """Why they could not be listed."""
    stamp: tuple[Any, ...] = ()
    """What the table says of the cursor while nobody else is done with the host."""

    def go_on(self) -> None:
        """List the objects of the next turn."""
        self.some = []
        pages = size_bytes = 0
        try:
            while len(self.some) < TURN and size_bytes < TURN_BYTES and pages < PAGES:
                one = next(self.rest)
                if one is None:
                    pages += 1
                else:
                    self.some.append(one)
                    size_bytes += one.size_bytes
        except StopIteration:
            self.is_listed = True
        except NOT_READ as e:
            self.error = e


class Objects:
    """Reads objects of many hosts from one bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._threads = ThreadPoolExecutor(THREADS, "bucket")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def surveys(self, cursors: Iterable[Cursor]) -> Iterator[Survey]:
        """List what hosts have written since their cursors."""
        return self._ahead(self._survey, cursors, THREADS)

    def _survey(self, cursor: Cursor) -> Survey:
        now = datetime.now(UTC)
        start = cursor.start(now)
        look = Look(cursor, everything=start is None, began=now)
        survey = Survey(look, [], _fresh(look, self._bucket.list(cursor.prefix, start)))
        survey.go_on()
        return survey

    def go_on(self, surveys: Sequence[Survey]) -> None:
        """List what comes next of several hosts."""
        for _ in self._ahead(Survey.go_on, surveys, THREADS):
            pass

    def read(self, survey: Survey) -> Generator[tuple[Found, bytes | Refused | None], None, None]:
        """Read the objects of a survey's turn; None for one that is gone.

        Raises:
            NOT_READ: they could not all be listed, or the next one not be read.

        """
        some = survey.some
        sizes = [one.size_bytes if one.size_bytes <= OBJECT_BYTES else 0 for one in some]
        yield from zip(some, self._ahead(self._get, some, AHEAD, sizes), strict=True)
        if survey.error is not None:
            raise survey.error

    def _get(self, one: Found) -> bytes | Refused | None:
        if one.size_bytes > OBJECT_BYTES:
            return Refused("too-large", f"object has {one.size_bytes} bytes")
        try:
            return self._bucket.get(one.key, one.size_bytes)  # its host may have replaced it
        except NotFoundError:
            return None  # its life ended between the listing and now
        except FormatError as e:
            return Refused("too-large", str(e))

    def _ahead(
        self, call: Any, items: Iterable[Any], count: int, sizes: Sequence[int] = ()
    ) -> Iterator[Any]:
        """Call a function for each item in other threads, some items ahead; keep the order.

        Items with `sizes` are so many ahead that they have at most AHEAD_BYTES together.
        """
        waiting: deque[tuple[Future[Any], int]] = deque()
        todo = deque(zip_longest(items, sizes, fillvalue=0))
        held = 0
        try:
            while todo or waiting:
                while todo and len(waiting) < count:
                    item, size = todo[0]
                    if waiting and held + size > AHEAD_BYTES:
                        break
                    todo.popleft()
                    held += size
                    waiting.append((self._threads.submit(call, item), size))
                future, size = waiting.popleft()
                yield future.result()
                held -= size
        finally:
            for future, _ in waiting:
                future.cancel()


def _fresh(look: Look, listed: Iterable[Found]) -> Iterator[Found | None]:
    """Yield the objects of a listing that are new; None after each page of others."""
    old = 0
    for one in listed:
        if look.takes(one):
            yield one
        else:
            old += 1
            if old % PAGE == 0:
                yield None
