"""Errors of object storage become one line, an exit status, and what to do."""

import pytest
from obstore import exceptions

from crashd.edge.fleet.bucket import Bucket, Version
from crashd.errors import CrashdError, FormatError, PermissionDeniedError, UnavailableError

METADATA = (
    "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 5s -"
    " HTTP error: error sending request\n\nDebug source:\nGeneric {"
)


class FailingStore:
    """A store whose every request fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def list(self, *_: object, **__: object) -> None:
        raise self._error

    head = get = list


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (exceptions.GenericError(METADATA), PermissionDeniedError, True),
        (exceptions.PermissionDeniedError("403"), PermissionDeniedError, True),
        (exceptions.GenericError("error sending request"), UnavailableError, False),
        (exceptions.NotFoundError("NoSuchBucket"), UnavailableError, False),
    ],
)
def test_check_of_store_that_fails_is_one_line_with_what_to_do(
    error: Exception, kind: type[CrashdError], hint: bool
) -> None:
    bucket = Bucket("s3://crashes", FailingStore(error))  # type: ignore[arg-type]
    with pytest.raises(kind, match="bucket s3://crashes: ") as caught:
        bucket.check()
    assert "\n" not in str(caught.value) and bool(caught.value.hint) == hint


def test_read_range_of_changed_object_says_so() -> None:
    store = FailingStore(exceptions.PreconditionError("412"))
    with pytest.raises(FormatError, match="has changed while it was read"):
        Bucket("s3://crashes", store).read_range(Version("cores/x", 9, '"e"'), 0, 9)  # type: ignore[arg-type]
