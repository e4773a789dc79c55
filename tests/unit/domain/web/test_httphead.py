import re

import pytest

from crashd.domain.web.httphead import accepts_gzip, parse_basic, parse_request, wants_openmetrics

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROMETHEUS_ACCEPT, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=1.0.0", True),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.5", True),
        ("application/openmetrics-text;q=0.5,text/plain", False),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0,*/*;q=0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=inf,text/plain", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("*/*", False),
        ("", False),
        (";;=,;q,", False),
    ],
)
def test_wants_openmetrics_takes_what_is_preferred(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("", False),
    ],
)
def test_accepts_gzip_heeds_the_quality(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


def test_parse_request_is_taken_apart() -> None:
    head = b"GET /metrics?x=/y HTTP/1.1\r\nHost: a:1\r\nAccept: a\r\nX:\r\naccept:  b "
    headers = {"host": "a:1", "accept": "a, b", "x": ""}
    assert parse_request(head) == ("GET", "/metrics", headers)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.1 ",
        b"GET  / HTTP/1.1",
        b"G\xc9T / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nnone",
        b"GET / HTTP/1.1\r\n: x",
        b"GET / HTTP/1.1\r\nHost : x",
        b"GET / HTTP/1.1\r\n folded: x",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_parse_request_what_is_none_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=re.compile("is no|unpack")):
        parse_request(head)


@pytest.mark.parametrize(
    ("authorization", "found"),
    [
        ("Basic dXNlcjpwYXNz", ("user", b"pass")),
        ("bAsIc  dXNlcjpwYXNz ", ("user", b"pass")),
        ("Basic dTpwOnE=", ("u", b"p:q")),
        ("Basic Og==", ("", b"")),
        ("Basic w7w6/w==", ("\u00fc", b"\xff")),
        ("Basic /zp4", None),  # a name that is not UTF-8
        ("Basic dXNlcg==", None),  # no colon
        ("Basic dXNlcjpwYXNz, Basic dXNlcjpwYXNz", None),
        ("Basic dXNlcjpwYXN", None),
        ("Basic \u00fc", None),
        ("Bearer dXNlcjpwYXNz", None),
        ("Basic", None),
        ("", None),
    ],
)
def test_parse_basic(authorization: str, found: tuple[str, bytes] | None) -> None:
    assert parse_basic(authorization) == found
