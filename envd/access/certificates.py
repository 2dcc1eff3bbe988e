"""Reads of an X.509 certificate (RFC 5280) what envd goes by: how long it is good, its names.

Those who read it for TLS have seen that it is one.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

_VERSION, _UTC_TIME = 0xA0, 0x17
# In the part of a certificate that is signed, without the version: before it are the serial
# number, the algorithm and the issuer.
_VALIDITY = 3
_EXTENSIONS, _ALTERNATIVES = 0xA3, bytes.fromhex("551d11")
_KINDS = {0x81: "email", 0x82: "DNS", 0x86: "URI"}
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def validities(pem: str) -> Iterator[tuple[float, float]]:
    """Yield from when and until when the certificates in *pem* are good.

    Raises:
        OSError: one is none.
    """
    for part in pem.split(_BEGIN)[1:]:
        text = f"{_BEGIN}{part.partition(_END)[0]}{_END}"
        try:
            yield _validity(ssl.PEM_cert_to_DER_cert(text))
        except (ValueError, IndexError) as error:
            message = "this is no certificate"
            raise OSError(message) from error


def names(pem: str) -> tuple[str, ...]:
    """Return the alternative names of the certificate *pem*, as `DNS:front.example`, whole.

    gRPC tells them only up to a NUL, behind which a CA may have meant something else.
    """
    found = []
    for tag, extensions in _signed(ssl.PEM_cert_to_DER_cert(pem)):
        for _, extension in _elements(_only(extensions)) if tag == _EXTENSIONS else ():
            (_, kind), *_, (_, content) = _elements(extension)
            found += _elements(_only(content)) if kind == _ALTERNATIVES else []
    return tuple(f"{_KINDS[tag]}:{_text(name)}" for tag, name in found if tag in _KINDS)


def _validity(der: bytes) -> tuple[float, float]:
    parts = [one for one in _signed(der) if one[0] != _VERSION]
    begin, end = _elements(parts[_VALIDITY][1])
    return _moment(*begin), _moment(*end)


def _moment(tag: int, content: bytes) -> float:
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _signed(der: bytes) -> list[tuple[int, bytes]]:
    """Return the elements of the part of a certificate that is signed."""
    return _elements(_elements(_only(der))[0][1])


def _only(content: bytes) -> bytes:
    return _elements(content)[0][1]


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    """Return the elements of DER in *content*, by tag."""
    found, place = [], 0
    while place < len(content):
        tag, length, place = content[place], content[place + 1], place + 2
        if length & 0x80:
            digits = length & 0x7F
            length, place = int.from_bytes(content[place : place + digits], "big"), place + digits
        found.append((tag, content[place : place + length]))
        place += length
    return found
