"""The objects of hosts, listed and read ahead in threads of their own."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, zip_longest
from typing import Any

from crashd.edge.fleet.bucket import Bucket, Found
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
SURVEYED = 1000
"""Objects of one host that are listed before any is read."""
NOT_READ = (UnavailableError, PermissionDeniedError, FormatError)
"""Either the bucket is away, or it has something of one host that it does not list or give out."""


@dataclass(slots=True)
class Survey:
    """The new objects of a host: the first ones are listed already."""

    look: Look
    first: list[Found]
    rest: Iterator[Found]
    error: CrashdError | None = None
    """Why they could not be listed."""


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
        look = Look(cursor, everything=start is None)
        fresh = (one for one in self._bucket.list(cursor.prefix, start) if look.takes(one))
        try:
            return Survey(look, list(islice(fresh, SURVEYED)), fresh)
        except NOT_READ as e:
            return Survey(look, [], fresh, e)

    def read(self, survey: Survey) -> Iterator[tuple[Found, bytes | Refused | None]]:
        """Read the objects of a survey; None for one that is gone.

        Raises:
            NOT_READ: the rest could not be listed, or the next one not be read.

        """
        if survey.error is not None:
            raise survey.error
        some = survey.first
        while some:
            sizes = [one.size_bytes if one.size_bytes <= OBJECT_BYTES else 0 for one in some]
            yield from zip(some, self._ahead(self._get, some, AHEAD, sizes), strict=True)
            some = list(islice(survey.rest, SURVEYED))

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
