"""TLS for the metrics' server: the context of a web configuration, and a stream of its bytes."""

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
    """Build a server's context; relative names of files are below `directory`.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion[tls.min_version]
    if tls.max_version is not None:
        context.maximum_version = ssl.TLSVersion[tls.max_version]
    # Without tickets and sessions: who was let in by an old file is asked again by a new one.
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
        # The password is for keys that have one, which OpenSSL would else ask the terminal for.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"certificate {cert} with key {key}: {_reason(e)}",
            hint="both in PEM, the key without a password and the certificate's own",
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
        return (error.reason or "not what OpenSSL can read").lower().replace("_", " ")
    return reason_of(error)


class TlsStream:
    """A stream by TLS, the server's side."""

    def __init__(
        self, peer: socket.socket, context: ssl.SSLContext, sans: frozenset[str] = frozenset()
    ) -> None:
        """Take over `peer`, which does not block."""
        self._tls = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        self.socket: socket.socket = self._tls
        self._sans = sans
        self._begun = self._ready = False
        self.refusal: str | None = None

    def recv(self, size: int) -> bytes:
        """Receive; the handshake comes first."""
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
            # What OpenSSL has taken from the socket already, no selector tells of.
            while len(data) < size and self._tls.pending():
                data += self._tls.recv(size - len(data))
        return data

    def _check_name(self) -> None:
        certificate = self._tls.getpeercert()
        if self._sans and certificate:
            names = certificate.get("subjectAltName", ())
            if not self._sans & set(_known_names(names)):  # type: ignore[arg-type]
                raise ConnectionAbortedError("the client's certificate has none of the names")

    def send(self, data: memoryview) -> int:
        """Send some of it."""
        if self.refusal is not None:
            return socket.socket.send(self._tls, data)
        with _wants():
            return self._tls.send(data)

    def shutdown(self) -> None:
        """Say that nothing more will be sent, in TLS and in TCP."""
        if self._ready:
            # Sends its word at once, and then wants to wait for the other's: that is not needed.
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
