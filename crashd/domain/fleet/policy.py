"""The fleet's policies: what the indexer writes for hosts, and what a host believes of it. Pure.

policy/v1/signatures.zst    {"version": 1, "signatures": ["p8-…", …]}
policy/v1/want/<host>       {"version": 1, "cores": [id, …], "deleted": [id, …]}
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from crashd.domain.crash.model import ID_PATTERN
from crashd.errors import FormatError, NewerError

VERSION: Final = 1
SIGNATURES_MAX: Final = 200_000
SIGNATURES_BYTES: Final = 8 << 20
"""Limit for the JSON of signatures.zst; and for the compressed object."""
WANT_MAX: Final = 1000
"""Limit for the ids in each list of a want."""
WANT_BYTES: Final = 256 << 10
_SIGNATURE = re.compile(r"[a-z][a-z0-9]{0,7}-[0-9a-f]{8,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Want:
    """What the fleet asks of one host."""

    cores: tuple[str, ...] = ()
    """Crashes whose cores it sends now."""
    deleted: tuple[str, ...] = ()
    """Crashes that it deletes."""


def build_signatures(signatures: Iterable[str]) -> bytes:
    """Build the JSON of signatures.zst, before its compression."""
    return _build({"signatures": sorted(signatures)})


def parse_signatures(raw: bytes) -> frozenset[str]:
    """Parse the JSON of signatures.zst.

    Raises:
        NewerError: it is of a newer version.
        FormatError: it is not such a policy.

    """
    found = _parse(raw, SIGNATURES_BYTES).get("signatures")
    if not isinstance(found, list) or len(found) > SIGNATURES_MAX:
        raise FormatError("policy has no list of signatures, or too long a one")
    if not all(isinstance(one, str) and _SIGNATURE.fullmatch(one) for one in found):
        raise FormatError("policy has a signature that is none")
    return frozenset(found)


def build_want(want: Want) -> bytes:
    """Build the JSON of a want."""
    return _build({"cores": list(want.cores), "deleted": list(want.deleted)})


def parse_want(raw: bytes) -> Want:
    """Parse the JSON of a want.

    Raises:
        NewerError: it is of a newer version.
        FormatError: it is not such a policy.

    """
    document = _parse(raw, WANT_BYTES)
    return Want(_ids(document, "cores"), _ids(document, "deleted"))


def _ids(document: dict[str, Any], key: str) -> tuple[str, ...]:
    found = document.get(key, [])
    if not isinstance(found, list) or len(found) > WANT_MAX:
        raise FormatError(f"policy has no list of {key}, or too long a one")
    if not all(isinstance(one, str) and ID_PATTERN.fullmatch(one) for one in found):
        raise FormatError(f"policy has an id in {key} that is none")
    return tuple(found)


def _build(document: dict[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **document}, separators=(",", ":")).encode()


def _parse(raw: bytes, limit: int) -> dict[str, Any]:
    if len(raw) > limit:
        raise FormatError(f"policy of {len(raw)} bytes, at most {limit} are taken")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise FormatError("policy is not JSON") from e
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise FormatError("policy is not a JSON object with a version")
    if document["version"] > VERSION:
        raise NewerError(f"policy has version {document['version']}, newer than {VERSION}")
    return document
