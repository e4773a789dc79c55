"""Object storage: S3, Google Cloud Storage, Azure, or a directory. Only importer of obstore, which
has one door to all of them.

Credentials come from where each cloud's own tools look for them: environment, instance metadata,
workload identity. Not from shared files in a home: the shipper sees none.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from crashd.domain.fleet.outcome import Failure, classify_failure
from crashd.domain.text import printable
from crashd.errors import UnavailableError, UnsupportedError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART_BYTES: Final = 5 << 20
"""The least that S3 takes as a part; also the most that is sent in one request."""
PARTS_AT_ONCE: Final = 2
"""Parts of one upload under way: they are all in memory."""
REQUEST_SECONDS: Final = 60
CONNECT_SECONDS: Final = 10
RETRY_SECONDS: Final = 240
"""How long one request, such as a part of an upload, is repeated: then the upload fails. More would
outlive the signatures of requests."""
_TEXT_MAX = 300


class ObjectError(UnavailableError):
    """An object could not be stored or fetched; `failure` says what kind of trouble it is."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


class Objects:
    """The objects below one URL."""

    def __init__(self, url: str, *, retries: int = 2) -> None:
        """Open it; this alone asks nothing of the store.

        Raises:
            UnsupportedError: obstore is not installed.
            ObjectError: the URL, or an environment variable, is wrong.

        """
        try:
            import obstore  # imported here: 5 MB, and optional
            from obstore import store
        except ImportError as e:
            raise UnsupportedError(
                "the client of object storage is not installed: there is no module obstore",
                hint="pip install 'crashd[fleet]', or pip install obstore pyrage",
            ) from e
        self._obstore = obstore
        self.url = url
        request = timedelta(seconds=REQUEST_SECONDS)
        try:
            # what is on this host has neither options nor retries
            options: dict[str, Any] = (
                {}
                if url.startswith(("file:", "memory:"))
                else {
                    "client_options": {
                        "timeout": request,
                        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                        "user_agent": "crashd",
                        # options that are given hide this one of the environment
                        "allow_http": os.environ.get("AWS_ALLOW_HTTP", "") in ("1", "true"),
                    },
                    "retry_config": {
                        "max_retries": retries,
                        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
                    },
                }
            )
            self._store: ObjectStore = store.from_url(url, **options)
        except (self._obstore.exceptions.BaseError, ValueError, OSError) as e:
            raise self._error(e) from e

    def put(self, key: str, body: bytes) -> None:
        """Store an object by one request; replace one of the same name.

        Raises:
            ObjectError: it was not stored, or nobody knows.

        """
        try:
            self._obstore.put(self._store, key, body, use_multipart=False)
        except (self._obstore.exceptions.BaseError, OSError) as e:
            raise self._error(e) from e

    def put_parts(self, key: str, parts: Iterator[bytes]) -> None:
        """Store an object in parts; it appears when the last one is stored. A part that fails is
        repeated alone.

        Raises:
            ObjectError: it was not stored; parts may be left, for the bucket's lifecycle rules.

        """
        try:
            self._obstore.put(
                self._store,
                key,
                parts,
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        except (self._obstore.exceptions.BaseError, OSError) as e:
            raise self._error(e) from e

    def get(self, key: str, max_bytes: int, etag: str | None = None) -> tuple[bytes, str] | None:
        """Fetch an object with its ETag; None if it has the given ETag still.

        Raises:
            ObjectError: there is none, it is larger, or it cannot be fetched.

        """
        options: Any = {"if_none_match": etag} if etag else None
        try:
            found = self._obstore.get(self._store, key, options=options)
            size = found.meta["size"]
            if size > max_bytes:
                raise ObjectError(
                    f"{self.url}/{key} has {size} bytes, at most {max_bytes} are taken",
                    Failure.REFUSED,
                )
            return bytes(found.bytes()), found.meta["e_tag"] or ""
        except self._obstore.exceptions.NotModifiedError:
            return None
        except (self._obstore.exceptions.BaseError, OSError) as e:
            raise self._error(e) from e

    def _error(self, error: Exception) -> ObjectError:
        """Make one line of the library's message, which goes on for a page."""
        text = str(error).partition("Debug source:")[0]
        failure = classify_failure(text)
        known = self._obstore.exceptions
        if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
            failure = Failure.CREDENTIALS
        if "builder error" in text:
            text += " (an endpoint with http:// needs AWS_ALLOW_HTTP=true)"
        line = printable(" ".join(text.split()))[:_TEXT_MAX]
        return ObjectError(f"{self.url}: {_WORDS[failure]}: {line}", failure)


_WORDS = {
    Failure.CREDENTIALS: "no access with these credentials",
    Failure.MISSING: "there is no such bucket or object",
    Failure.NETWORK: "the store does not answer",
    Failure.SERVER: "the store cannot now",
    Failure.REFUSED: "the store refuses",
    Failure.SHIPPER: "the shipper failed",
    Failure.LOCAL: "this host failed",
}
