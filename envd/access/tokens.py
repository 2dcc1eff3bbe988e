"""The file of bearer tokens: `ROLE sha256:HEX NAME` in each line, and never a token itself.

A digest needs no salt and no slow hash: what it stands for is random, and as long as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from envd.access import private_file
from envd.access.private_file import refused
from envd.access.roles import NAMES, Role
from envd.errors import SettingsInvalidError

_WHAT = "the file of tokens"
_LINE = re.compile(
    rf"({'|'.join(NAMES)})[ \t]+sha256:([0-9a-f]{{64}})(?:[ \t]+([\w.@-]{{1,64}}))?", re.ASCII
)
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
# Each is compared with what every caller sends.
_MOST = 1000
_BYTES, _SHOWN = 32, 8


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: whose it is, what they may do, and its sha256."""

    role: Role
    digest: bytes = field(repr=False)
    name: str


def read(path: str) -> tuple[Token, ...]:
    """Return the tokens of the file *path*; empty lines and those with a `#` first are none.

    Raises:
        SettingsInvalidError: it cannot be used, or others may read it.
    """
    return parse(private_file.read(path, _WHAT), path)


def parse(text: str, path: str) -> tuple[Token, ...]:
    """Return the tokens in the *text* of the file *path*.

    Raises:
        SettingsInvalidError: a line is none, or there are too many.
    """
    found: dict[bytes, Token] = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(" \t\r")
        if not stripped or stripped.startswith("#"):
            continue
        token = _token(stripped)
        if token is None:
            # Not the line itself: somebody may have written a token into it.
            why = f"has no `ROLE sha256:HEX NAME` in line {number}; `envctl token` makes such lines"
            raise refused(path, _WHAT, why)
        if token.digest in found:
            why = f"has the token of line {number} twice; a token has one role"
            raise refused(path, _WHAT, why)
        found[token.digest] = token
        if len(found) > _MOST:
            raise refused(path, _WHAT, f"has more than {_MOST} tokens")
    return tuple(found.values())


def find(tokens: Collection[Token], given: str) -> Token | None:
    """Return the one of *tokens* that is *given*, in a time that does not say how near it was."""
    digest = _digest(given)
    found = None
    for one in tokens:
        if hmac.compare_digest(one.digest, digest):
            found = one
    return found


def made(role: Role, name: str) -> tuple[str, str]:
    """Return a new token, and its line for the file.

    Raises:
        SettingsInvalidError: *name* is none.
    """
    if name and not _NAME.fullmatch(name):
        message = f"{name!r} is no name for a token; give 1 to 64 letters, digits, or any of `._@-`"
        raise SettingsInvalidError(message, setting="--name")
    token = secrets.token_urlsafe(_BYTES)
    return token, f"{role.value} sha256:{_digest(token).hex()} {name}".strip()


def _token(line: str) -> Token | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    role, digest, name = match.groups()
    return Token(Role(role), bytes.fromhex(digest), name or digest[:_SHOWN])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
