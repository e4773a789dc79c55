"""What the client library's messages mean, and how long to wait after a failure."""

import pytest

from crashd.domain.fleet.outcome import RETRY_MAX_SECONDS, Failure, classify_failure, retry_seconds

AT = "Generic S3 error: Error performing PUT http://127.0.0.1/crashes/x in 9ms - "


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (AT + "Server returned non-2xx status code: 403 Forbidden: <Error>", Failure.CREDENTIALS),
        (AT + "Server returned non-2xx status code: 404 Not Found: NoSuchBucket", Failure.MISSING),
        (AT + "Server returned non-2xx status code: 503 Slow Down", Failure.SERVER),
        (AT + "Server returned non-2xx status code: 429 Too Many", Failure.SERVER),
        (AT + "Server returned non-2xx status code: 400 Bad Request", Failure.REFUSED),
        (AT + "HTTP error: error sending request", Failure.NETWORK),
        (AT + "HTTP error: operation timed out", Failure.NETWORK),
        (
            "Generic GCS error: Error performing token request: Error performing GET "
            "http://169.254.169.254/x - Server returned non-2xx status code: 404 Not Found",
            Failure.CREDENTIALS,
        ),
        ("Generic MicrosoftAzure error: Account must be specified", Failure.CREDENTIALS),
        (
            "Generic LocalFileSystem error: Unable to canonicalize filesystem root: /x",
            Failure.MISSING,
        ),
        (
            "Generic LocalFileSystem error: Unable to open file: Permission denied",
            Failure.CREDENTIALS,
        ),
        ("Generic LocalFileSystem error: Unable to open file: Not a directory", Failure.LOCAL),
        ("something new", Failure.REFUSED),
    ],
)
def test_classify_failure(text: str, failure: Failure) -> None:
    assert classify_failure(text) is failure


def test_retry_seconds_double_to_a_limit_and_spread() -> None:
    assert retry_seconds(1, 0.0) == 1.0 and retry_seconds(1, 1.0) == 2.0
    assert retry_seconds(3, 0.0) == 4.0
    assert retry_seconds(10_000, 1.0) == RETRY_MAX_SECONDS
    assert retry_seconds(10_000, 0.0) == RETRY_MAX_SECONDS / 2
