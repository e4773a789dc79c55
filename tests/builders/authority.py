"""Certificates for tests of TLS."""

import ssl
import subprocess
from pathlib import Path


class Authority:
    """A certificate authority, and what it signed; all by openssl(1)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.pem"
        self.openssl("req", "-x509", *self._new("ca"), "-subj", "/CN=test ca", "-days", "2")

    def _new(self, name: str) -> list[str]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        return [*key, "-keyout", f"{name}.key", "-out", f"{name}.pem"]

    def openssl(self, *arguments: str) -> None:
        """Run openssl in the authority's directory."""
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.directory, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def sign(self, name: str, sans: str = "IP:127.0.0.1,DNS:localhost") -> None:
        """Make NAME.pem and NAME.key."""
        self.openssl(
            *("req", "-x509", *self._new(name), "-subj", f"/CN={name}", "-days", "2"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName={sans}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        (self.directory / f"{name}.key").chmod(0o600)

    def client(self, name: str | None = None) -> ssl.SSLContext:
        """Build the context of a client that trusts this authority."""
        context = ssl.create_default_context(cafile=self.certificate)
        if name is not None:
            context.load_cert_chain(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        return context
