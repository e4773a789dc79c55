"""TLS for the metrics server: builds a context from the web configuration, and makes streams."""

import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path

from crashd.domain.web.webconfig import ClientCert, Tls
from crashd.edge.web.webguard import WantsRead, WantsWrite
from crashd.errors import ConfigError, reason_of

_VERIFY = {
    ClientCert.NONE: ssl.CERT_NONE,
    ClientCert.IF_GIVEN: ssl.CERT_OPTIONAL,
    ClientCert.REQUIRED: ssl.CERT_REQUIRED,
}
_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection: the type of its first record."""


def build_context(tls: Tls, directory: Path) -> ssl.SSLContext:
    """Build a server's context; relative file names are below `directory`.

    Raises:
        ConfigError: a file cannot be read, or is malformed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion[tls.min_version]
    if tls.max_version is not None:
        context.maximum_version = ssl.TLSVersion[tls.max_version]
    # No tickets and sessions, so that a new configuration file applies to every client again.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    if tls.prefer_server_ciphers:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    cert, key = directory / tls.cert_file, directory / tls.key_file
    try:
        if tls.ciphers:
            context.set_ciphers(":".join(tls.ciphers))
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"certificate {cert} with key {key}: {_reason(e)}",
            hint="both must be PEM; the key must match the certificate and have no password",
        ) from e
    if tls.client_ca_file is not None:
        authority = directory / tls.client_ca_file
        try:
            context.load_verify_locations(authority)
        except (OSError, ValueError) as e:
            raise ConfigError(f"client_ca_file {authority}: {_reason(e)}") from e
    context.verify_mode = _VERIFY[tls.client_cert]
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not readable by OpenSSL").lower().replace("_", " ")
    return reason_of(error)


class TlsStream:
    """The server's side of a TLS stream."""

    def __init__(
        self, peer: socket.socket, context: ssl.SSLContext, sans: frozenset[str] = frozenset()
    ) -> None:
        """Take over `peer`, which must be non-blocking."""
        self._tls = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        self.socket: socket.socket = self._tls
        self._sans = sans
        self._begun = self._ready = False
        self.refusal: str | None = None

    def recv(self, size: int) -> bytes:
        """Receive; do the handshake first."""
        if not self._begun:
            first = socket.socket.recv(self._tls, 1, socket.MSG_PEEK)
            self._begun = True
            if first != _HANDSHAKE:
                self.refusal = "this is HTTPS: use https://\n"
        if self.refusal is not None:
            return socket.socket.recv(self._tls, size)
        with _wants():
            if not self._ready:
                self._tls.do_handshake()
                self._check_name()
                self._ready = True
            data = self._tls.recv(size)
            # A selector does not report data that OpenSSL has already read from the socket.
            while len(data) < size and self._tls.pending():
                data += self._tls.recv(size - len(data))
        return data

    def _check_name(self) -> None:
        certificate = self._tls.getpeercert()
        if self._sans and certificate:
            names = certificate.get("subjectAltName", ())
            if not self._sans & set(_known_names(names)):  # type: ignore[arg-type]
                raise ConnectionAbortedError(
                    "the client's certificate has none of the allowed names"
                )

    def send(self, data: memoryview) -> int:
        """Send a part of the data; return how much."""
        if self.refusal is not None:
            return socket.socket.send(self._tls, data)
        with _wants():
            return self._tls.send(data)

    def shutdown(self) -> None:
        """End the sending side, of TLS and of TCP."""
        if self._ready:
            # unwrap() sends our close_notify at once; there is no need to wait for the client's.
            with contextlib.suppress(OSError, ValueError):
                self._tls.unwrap()
        self._tls.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def _wants() -> Iterator[None]:
    try:
        yield
    except ssl.SSLWantReadError as e:
        raise WantsRead from e
    except ssl.SSLWantWriteError as e:
        raise WantsWrite from e


def _known_names(names: Iterable[tuple[str, str]]) -> Iterable[str]:
    for kind, name in names:
        if kind == "IP Address":
            with contextlib.suppress(ValueError):
                yield str(ipaddress.ip_address(name.strip()))
        elif kind in ("DNS", "email", "URI"):
            yield name
