"""Encryption to public keys: what comes back, and what does not."""

import io

import pytest

from crashd.edge.fleet import age
from crashd.errors import FormatError, UsageError

pyrage = pytest.importorskip("pyrage")


@pytest.fixture(scope="module")
def secret() -> str:
    return str(pyrage.x25519.Identity.generate())


@pytest.fixture
def recipients(secret: str) -> list[age.Recipient]:
    public = pyrage.x25519.Identity.from_str(secret).to_public()
    return age.parse_recipients([str(public)])


@pytest.fixture
def identities(secret: str) -> list[age.Identity]:
    return age.parse_identities(f"# created: today\n\n{secret}\n", "key.txt")


def decrypt(data: bytes, identities: list[age.Identity]) -> bytes:
    target = io.BytesIO()
    age.decrypt_stream(io.BytesIO(data), target, identities)
    return target.getvalue()


def test_stream_comes_back_whole(
    recipients: list[age.Recipient], identities: list[age.Identity]
) -> None:
    data = bytes(range(256)) * 1000
    target = io.BytesIO()
    age.encrypt_stream(io.BytesIO(data), target, recipients)
    assert target.getvalue().startswith(age.MAGIC) and data[:64] not in target.getvalue()
    assert decrypt(target.getvalue(), identities) == data
    assert decrypt(age.encrypt(data, recipients), identities) == data


@pytest.mark.parametrize("environ", [(), (b"A=1", b"B=\xff\n"), (b"x" * 100_000,)])
def test_environ_comes_back_exactly(
    recipients: list[age.Recipient], identities: list[age.Identity], environ: tuple[bytes, ...]
) -> None:
    text = age.encrypt_environ(environ, recipients)
    assert age.decrypt_environ(text, identities) == environ


def test_what_is_damaged_or_for_another_key_is_refused(
    recipients: list[age.Recipient], identities: list[age.Identity]
) -> None:
    data = age.encrypt(bytes(200_000), recipients)
    other = age.parse_identities(str(pyrage.x25519.Identity.generate()), "other")
    for wrong, keys in (
        (data, other),
        (data[:-1], identities),
        (data[:1000], identities),
        (data[:100_000] + b"\x01" + data[100_001:], identities),
        (b"", identities),
        (b"no age file", identities),
    ):
        with pytest.raises(FormatError, match="cannot decrypt"):
            decrypt(wrong, keys)


@pytest.mark.parametrize("text", ["", "!", "AAAA"])
def test_environ_that_is_none_is_refused(text: str, identities: list[age.Identity]) -> None:
    with pytest.raises(FormatError):
        age.decrypt_environ(text, identities)


@pytest.mark.parametrize("text", ["age1", "age1" + "q" * 58, "ssh-ed25519 AAAA"])
def test_public_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="public key"):
        age.parse_recipients([text])


@pytest.mark.parametrize("text", ["", "# only a comment\n", "AGE-SECRET-KEY-1", "x"])
def test_secret_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"key\.txt"):
        age.parse_identities(text, "key.txt")
