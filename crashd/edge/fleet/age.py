"""Encryption in the format of age, to public keys alone: what a host has encrypted, nobody reads on
it again. Only importer of pyrage.

Source: https://age-encryption.org/v1
"""

import base64
import io
import json
from collections.abc import Sequence
from typing import IO, Any, Final, NewType

from crashd.errors import (
    FormatError,
    UnavailableError,
    UnsupportedError,
    UsageError,
    reason_of,
)

Recipient = NewType("Recipient", object)
"""A public key."""
Identity = NewType("Identity", object)
"""A secret key."""

MAGIC: Final = b"age-encryption.org/v1\n"
IDENTITY_FILE_MAX: Final = 64 << 10
ENVIRON_MAX: Final = 4 << 20


def _load() -> Any:
    try:
        import pyrage  # imported here: optional, and needed only with recipients
    except ImportError as e:
        raise UnsupportedError(
            "the age format is not available: there is no module pyrage",
            hint="pip install 'crashd[fleet]', or pip install pyrage",
        ) from e
    return pyrage


def parse_recipients(recipients: Sequence[str]) -> list[Recipient]:
    """Parse public keys.

    Raises:
        UnsupportedError: pyrage is not installed.
        UsageError: one is not a public key.

    """
    pyrage = _load()
    found: list[Recipient] = []
    for text in recipients:
        kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
        try:
            found.append(kind.Recipient.from_str(text))
        except (pyrage.RecipientError, ValueError) as e:
            raise UsageError(f"{text[:80]!r} is no public key: {e}") from e
    return found


def encrypt(data: bytes, recipients: Sequence[Recipient]) -> bytes:
    """Encrypt bytes."""
    return bytes(_load().encrypt(data, list(recipients)))


def encrypt_stream(source: IO[bytes], target: IO[bytes], recipients: Sequence[Recipient]) -> None:
    """Encrypt a stream, piece by piece.

    Raises:
        OSError: the source or the target fails.

    """
    _load().encrypt_io(source, target, list(recipients))


def encrypt_environ(environ: Sequence[bytes], recipients: Sequence[Recipient]) -> str:
    """Encrypt a crash's environment for its line: base64 of an age file, whose content is a JSON
    list of the base64 of each `NAME=value`.
    """
    texts = json.dumps([base64.b64encode(one).decode() for one in environ])
    return base64.b64encode(encrypt(texts.encode(), recipients)).decode()


def decrypt_environ(text: str, identities: Sequence[Identity]) -> tuple[bytes, ...]:
    """Decrypt what `encrypt_environ` made.

    Raises:
        FormatError: it is something else, or none of the keys opens it.

    """
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as e:
        raise FormatError("encrypted environment is not base64") from e
    target = io.BytesIO()
    decrypt_stream(io.BytesIO(raw), target, identities)
    try:
        document = json.loads(target.getvalue())
        return tuple(base64.b64decode(one, validate=True) for one in document)
    except (ValueError, TypeError, RecursionError) as e:
        raise FormatError("encrypted environment is not a list of texts") from e


def parse_identities(text: str, name: str) -> list[Identity]:
    """Parse a file of secret keys, as age-keygen writes it, or an unencrypted OpenSSH key.

    Raises:
        UnsupportedError: pyrage is not installed.
        UsageError: there is no secret key in it.

    """
    pyrage = _load()
    try:
        if "BEGIN OPENSSH PRIVATE KEY" in text:
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        found: list[Identity] = [pyrage.x25519.Identity.from_str(key) for key in keys]
    except (pyrage.IdentityError, ValueError) as e:
        raise UsageError(f"{name} holds no secret key of age: {e}") from e
    if not found:
        raise UsageError(f"{name} holds no secret key of age")
    return found


def decrypt_stream(source: IO[bytes], target: IO[bytes], identities: Sequence[Identity]) -> None:
    """Decrypt a stream, piece by piece.

    Raises:
        FormatError: it is not in the age format, damaged, or none of the keys opens it.
        UnavailableError: the target fails.

    """
    pyrage = _load()
    try:
        pyrage.decrypt_io(source, target, list(identities))
    except pyrage.DecryptError as e:
        raise FormatError(f"cannot decrypt: {e}") from e
    except OSError as e:  # pyrage's own has no number
        if e.errno is None:
            raise FormatError("cannot decrypt: the file is damaged, or ends too early") from e
        raise UnavailableError(f"cannot decrypt: {reason_of(e)}") from e
