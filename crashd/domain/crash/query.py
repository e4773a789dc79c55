"""Which crashes are asked for; match.py has what the words of a MATCH mean."""

from __future__ import annotations

from crashd.errors import FormatError
from crashd.records import NamedTuple

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TERMS_MAX = 64
TERM_MAX = 4096
ID_PREFIX_MIN = 4
"""The least characters of an id that name a crash."""


class Query(NamedTuple):
    """Which crashes to list."""

    terms: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    kind: str | None = None
    signature: str | None = None
    limit: int | None = None
    reverse: bool = False
    """Oldest first."""

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return {
            "terms": list(self.terms),
            "since_ns": self.since_ns,
            "until_ns": self.until_ns,
            "kind": self.kind,
            "signature": self.signature,
            "limit": self.limit,
            "reverse": self.reverse,
        }

    @classmethod
    def from_json(cls, document: object) -> Query:
        """Parse the object that `to_json` builds; it may come from anybody.

        Raises:
            FormatError: it does not have that form, or is too large.
        """
        if not isinstance(document, dict) or not set(document) <= set(Query().to_json()):
            raise FormatError("query is not an object with known keys")
        terms = document.get("terms", [])
        if not isinstance(terms, list) or len(terms) > TERMS_MAX:
            raise FormatError(f"query: terms is not a list of at most {TERMS_MAX}")
        for term in terms:
            if not isinstance(term, str) or len(term) > TERM_MAX:
                raise FormatError("query: a term is not text, or is too long")
        from crashd.domain.crash.kinds import Kind  # only the daemon parses queries

        kind = document.get("kind")
        if kind is not None and kind not in list(Kind):
            raise FormatError("query: unknown kind")
        signature = document.get("signature")
        if signature is not None and (not isinstance(signature, str) or len(signature) > TERM_MAX):
            raise FormatError("query: signature is not text, or is too long")
        return cls(
            terms=tuple(terms),
            since_ns=_number(document, "since_ns"),
            until_ns=_number(document, "until_ns"),
            kind=kind,
            signature=signature,
            limit=_number(document, "limit"),
            reverse=document.get("reverse", False) is True,
        )


def _number(document: Mapping[str, Any], key: str) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise FormatError(f"query: {key} is not a number")
    return value
