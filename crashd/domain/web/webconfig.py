"""Checks the document of a Prometheus web configuration file. Pure.

The keys and their meaning are those of the exporter toolkit of Prometheus
(https://prometheus.io/docs/prometheus/latest/configuration/https/). crashd refuses what it cannot
do as intended, and never ignores it, because the file exists to keep people out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

USERS_MAX = 100
SANS_MAX = 100
COST_MAX = 15
"""bcrypt's cost: each step doubles the time of a check, and 15 already takes two seconds."""
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_HEADERS = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
_VERSIONS = {"TLS12": "TLSv1_2", "TLS13": "TLSv1_3"}
_CIPHERS = {
    f"TLS_ECDHE_{key}_WITH_{go}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for go, openssl in {
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305": "CHACHA20-POLY1305",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
    }.items()
}
"""Maps Go's names to OpenSSL's; the ciphers of TLS 1.3 are always enabled, with both."""
_CIPHERS_13 = frozenset(
    {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
)


class WebConfigError(ValueError):
    """What is wrong with the document, in a few words; never contains a secret."""


class ClientCert(StrEnum):
    """What is required of a client's certificate."""

    NONE = "NoClientCert"
    IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRED = "RequireAndVerifyClientCert"


@dataclass(frozen=True, slots=True)
class Tls:
    """`tls_server_config`."""

    cert_file: str
    key_file: str
    client_cert: ClientCert = ClientCert.NONE
    client_ca_file: str | None = None
    client_sans: frozenset[str] = frozenset()
    """A client's certificate must have one of these names; if empty, any certificate will do."""
    min_version: str = "TLSv1_2"
    """A name of ssl.TLSVersion, like `max_version`."""
    max_version: str | None = None
    ciphers: tuple[str, ...] = ()
    """OpenSSL's names, for TLS 1.2; if empty, OpenSSL chooses."""
    prefer_server_ciphers: bool = True


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The whole file: who may connect, and the headers of answers."""

    tls: Tls | None
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Names, with the bcrypt hashes of their passwords."""
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_web_config(document: object) -> WebConfig:
    """Check a document parsed from YAML.

    Raises:
        WebConfigError: it is wrong, asks for something that crashd cannot do, or protects nothing.
    """
    top = _Table(document, "")
    tls = top.table("tls_server_config")
    users = top.table("basic_auth_users")
    server = top.table("http_server_config")
    top.end()
    config = WebConfig(
        None if tls is None else _parse_tls(tls),
        {} if users is None else _parse_users(users),
        {} if server is None else _parse_server(server),
    )
    if config.tls is None and not config.users:
        raise WebConfigError(
            "has neither tls_server_config nor basic_auth_users: it protects nothing"
        )
    return config


class _Table:
    """A mapping from which known keys are removed one by one, so that unknown keys remain."""

    def __init__(self, document: object, name: str) -> None:
        if not isinstance(document, dict):
            raise WebConfigError(f"{name or 'the document'} is not a mapping")
        self.name = name
        self._left: dict[object, Any] = dict(document)

    def where(self, key: object) -> str:
        return f"{self.name}.{key}" if self.name else str(key)

    def table(self, key: str) -> "_Table | None":
        if key not in self._left:
            return None
        return _Table(self._left.pop(key), self.where(key))

    def text(self, key: str) -> str | None:
        found = self._left.pop(key, None)
        if found is not None and not (isinstance(found, str) and found and found.isprintable()):
            raise WebConfigError(f"{self.where(key)} is not a text")
        return found

    def needed(self, key: str) -> str:
        found = self.text(key)
        if found is None:
            raise WebConfigError(f"{self.where(key)} is missing")
        return found

    def flag(self, key: str, default: bool) -> bool:
        found = self._left.pop(key, default)
        if not isinstance(found, bool):
            raise WebConfigError(f"{self.where(key)} is neither true nor false")
        return found

    def texts(self, key: str, count_max: int) -> list[str]:
        found = self._left.pop(key, None)
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(x, str) and x for x in found):
            raise WebConfigError(f"{self.where(key)} is not a list of texts")
        if len(found) > count_max:
            raise WebConfigError(f"{self.where(key)} has more than {count_max} entries")
        return found

    def rest(self) -> dict[object, Any]:
        found, self._left = self._left, {}
        return found

    def end(self) -> None:
        for key in self._left:
            raise WebConfigError(f"{self.where(repr(key)[:60])} is unknown to crashd")


def _parse_tls(table: _Table) -> Tls:
    """Check `tls_server_config`; contradictory or ineffective settings are errors."""
    cert, key = table.needed("cert_file"), table.needed("key_file")
    wanted = table.text("client_auth_type") or ClientCert.NONE
    if wanted in ("RequestClientCert", "RequireAnyClientCert"):
        raise WebConfigError(
            f"{table.where('client_auth_type')}: {wanted} verifies nothing, and crashd does not "
            f"support it; use {ClientCert.REQUIRED} or {ClientCert.IF_GIVEN}"
        )
    if wanted not in list(ClientCert):
        raise WebConfigError(f"{table.where('client_auth_type')}: unknown value {wanted!r:.60}")
    client, ca = ClientCert(wanted), table.text("client_ca_file")
    if (client is ClientCert.NONE) != (ca is None):
        raise WebConfigError(
            f"{table.where('client_ca_file')} and a verifying client_auth_type require each other"
        )
    sans = table.texts("client_allowed_sans", SANS_MAX)
    if sans and client is ClientCert.NONE:
        raise WebConfigError(f"{table.where('client_allowed_sans')} without a client_auth_type")
    lowest = _version(table, "min_version") or "TLSv1_2"
    highest = _version(table, "max_version")
    if highest is not None and highest < lowest:
        raise WebConfigError(f"{table.where('max_version')} is below min_version")
    ciphers = _parse_ciphers(table)
    prefer = table.flag("prefer_server_cipher_suites", True)
    table.end()
    return Tls(cert, key, client, ca, frozenset(sans), lowest, highest, ciphers, prefer)


def _version(table: _Table, key: str) -> str | None:
    name = table.text(key)
    if name is not None and name not in _VERSIONS:
        raise WebConfigError(f"{table.where(key)} is neither TLS12 nor TLS13: {name!r:.60}")
    return _VERSIONS[name] if name is not None else None


def _parse_ciphers(table: _Table) -> tuple[str, ...]:
    names = table.texts("cipher_suites", 64)
    for name in names:
        if name not in _CIPHERS and name not in _CIPHERS_13:
            raise WebConfigError(f"{table.where('cipher_suites')}: unknown cipher {name!r:.60}")
    return tuple(dict.fromkeys(_CIPHERS[name] for name in names if name in _CIPHERS))


def _parse_users(table: _Table) -> dict[str, bytes]:
    users = table.rest()
    if not 0 < len(users) <= USERS_MAX:
        raise WebConfigError(f"{table.name} must have between 1 and {USERS_MAX} users")
    for name, hashed in users.items():
        if not isinstance(name, str) or not name or not name.isprintable() or ":" in name:
            raise WebConfigError(f"{table.where(repr(name)[:60])} is not a valid user name")
        match = _BCRYPT.fullmatch(hashed) if isinstance(hashed, str) else None
        if match is None:
            raise WebConfigError(f"{table.where(repr(name)[:60])} has no bcrypt hash")
        if not 4 <= int(match[1]) <= COST_MAX:
            raise WebConfigError(
                f"{table.where(repr(name)[:60])}: bcrypt's cost is not between 4 and {COST_MAX}"
            )
    return {str(name): str(hashed).encode("ascii") for name, hashed in users.items()}


def _parse_server(table: _Table) -> dict[str, str]:
    table.flag("http2", True)  # only an offer: clients that speak HTTP/2 also speak HTTP/1.1
    headers = table.table("headers")
    table.end()
    if headers is None:
        return {}
    found = {}
    for name in _HEADERS:
        text = headers.text(name)
        if text is not None:
            if not text.isascii():
                raise WebConfigError(f"{headers.where(name)} is not ASCII")
            found[name] = text
    headers.end()
    return found
