"""Certificates of a test: CAs, and what they certify."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)
_KINDS = {
    "DNS": x509.DNSName,
    "URI": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
    "IP": lambda text: x509.IPAddress(ipaddress.ip_address(text)),
}
_NO_USE = dict.fromkeys(
    (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "encipher_only", "decipher_only",
    ),
    False,
)  # fmt: skip
HERE = ("DNS:localhost", "IP:127.0.0.1")


@dataclass(frozen=True)
class Certified:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


@dataclass
class Authority:
    """A CA whose files lie in a folder."""

    folder: Path
    name: str = "ca"
    _key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self._write(self.name, _certificate(self.name, self._key, self.name, self._key), self._key)

    @property
    def cert(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def certify(self, name: str, *names: str, days: float = 10) -> Certified:
        """Certify the alternative *names*, for *days* from now on; before now if fewer than 0."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(name, key, self.name, self._key, names=names, days=days)
        return self._write(f"{self.name}-{name}", made, key)

    def _write(
        self, name: str, made: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> Certified:
        found = Certified(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        found.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        found.key.touch(mode=0o600)
        found.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return found


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey,
    *,
    names: tuple[str, ...] = (),
    days: float = 10,
) -> x509.Certificate:
    end = datetime.now(UTC) + timedelta(days=days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_called(name))
        .issuer_name(_called(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(end, datetime.now(UTC)) - _DAY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        # Newer ones of ssl insist on these.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
        )
    )
    if name == issuer:
        signs = dict.fromkeys(("key_cert_sign", "crl_sign"), True)
        builder = builder.add_extension(x509.KeyUsage(**_NO_USE | signs), critical=True)
    if names:
        pairs = (one.partition(":")[::2] for one in names)
        found = [_KINDS[kind](text) for kind, text in pairs]
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=False)
    return builder.sign(by, hashes.SHA256())


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
