"""Parses the head of an HTTP/1 request. Pure."""

import base64
from collections.abc import Iterable


def parse_request(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Parse a head into method, path without query, and headers by lower-case name.

    Raises:
        ValueError: it is malformed.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    if not (method.isascii() and method.isalpha()) or version not in ("HTTP/1.0", "HTTP/1.1"):
        raise ValueError(f"{first!r:.80} is not an HTTP/1 request")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(f"{line!r:.80} is not a header")
        known = headers.get(name.lower())
        headers[name.lower()] = value.strip() if known is None else f"{known}, {value.strip()}"
    return method, target.partition("?")[0], headers


def wants_openmetrics(accept: str) -> bool:
    """Return whether an Accept header prefers OpenMetrics 1.0.0 to the text format."""
    best, text = 0.0, 0.0
    for kind, parameters, quality in _ranges(accept):
        if (kind, parameters.get("version", "1.0.0")) == ("application/openmetrics-text", "1.0.0"):
            best = max(best, quality)
        elif kind in ("text/plain", "text/*", "*/*"):
            text = max(text, quality)
    return best > 0 and best >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip."""
    qualities = {coding: quality for coding, _, quality in _ranges(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _ranges(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    for item in header.lower().split(","):
        name, *rest = (part.strip() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        yield name, parameters, quality if 0 <= quality <= 1 else 0.0


def parse_basic(authorization: str) -> tuple[str, bytes] | None:
    """Return user and password of an Authorization header; None if its scheme is not Basic."""
    scheme, _, coded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(coded.strip(), validate=True).partition(b":")
        name = user.decode()
    except ValueError:
        return None
    return (name, password) if colon else None
