"""Finds what looks like a secret in what is about to be written into a model for everybody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.errors import RequestInvalidError

_MOST_BYTES = 8 << 20
_MOST_SHOWN = 20
# What their makers made to be recognized.
_KNOWN = {
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "an AWS access key": rb"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,})",
    "a GitLab token": rb"\bglpat-[\w-]{20,}",
    "a Slack token": rb"\bxox[abeoprs]-[\w-]{10,}",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a Databricks token": rb"\bdapi[0-9a-f]{32}\b",
    "an Anthropic key": rb"\bsk-ant-[\w-]{20,}",
    "an OpenAI key": rb"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{32,}",
    "a Google key": rb"\bAIza[\w-]{35}",
    "a Stripe key": rb"\b[rs]k_live_[A-Za-z0-9]{20,}",
    "a PyPI token": rb"\bpypi-AgE[\w-]{50,}",
    "an npm token": rb"\bnpm_[A-Za-z0-9]{36}\b",
    "a JSON web token": rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "an Azure storage key": rb"AccountKey=[A-Za-z0-9+/]{40,}={0,2}",
    "a password in a URL": rb"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@\"'{}<>$%]*:[^/\s:@\"'{}<>$%*]{3,}@[\w.-]+",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KNOWN.items()}
# What people call their secrets, and a text beside it, in code or in a configuration.
_ASSIGNED = re.compile(
    rb"""(?ix)
    ["']?\b(?P<name>\w*(?:passw(?:or)?d|passphrase|secret|token|api_?key|access_?key|auth_?key
        |private_?key|credential)s?)\b["']?
    \s*(?::\s*\w+\s*)?[:=]\s*[rbu]?(?P<quote>["'])(?P<value>[^"'\s]{6,})(?P=quote)
    """
)
# A value that says where the secret is, or that there is none.
_NONE = re.compile(
    rb"(?i)^(?:[<\[{(%$].*|.*\.\.\.+|x+|\*+|changeme|change_me|your[_-].*|example.*|dummy.*|test.*"
    rb"|placeholder.*|none|null|env:.*|password|secret|token)$"
)
# What is as in a tokenizer: `eos_token = "<eos>"` begins with a bracket; these do not.
_NO_SECRET_NAMES = re.compile(
    rb"(?i)^(?:\w*_)?(?:eos|bos|pad|unk|sep|cls|mask|special|stop|start|end|next|page|sub|max)_"
    rb"(?:\w+_)?tokens?$|tokenizer"
)


@dataclass(frozen=True, slots=True)
class Secret:
    """What looks like a secret, and where; never what it is."""

    place: str
    line: int
    kind: str

    def __str__(self) -> str:
        """Return it as it stands in messages."""
        return f"{self.place}:{self.line}: {self.kind}"


def in_text(place: str, content: bytes) -> Iterator[Secret]:
    """Yield what looks like a secret in *content*, which is source or a configuration."""
    seen = set()
    for kind, at in (*_known(content), *_assigned(content)):
        line = content.count(b"\n", 0, at) + 1
        # An assigned token of a known kind is one secret.
        if line not in seen:
            seen.add(line)
            yield Secret(place, line, kind)


def in_pickle(place: str, content: bytes) -> Iterator[Secret]:
    """Yield what surely looks like a secret in *content*, in which names and values are apart."""
    for kind, _ in _known(content):
        yield Secret(place, 0, kind)


def in_files(files: Iterable[tuple[Path, str]]) -> Iterator[Secret]:
    """Yield what looks like a secret in *files*, each with the name that people know it by."""
    for path, name in files:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        if b"\0" in content:
            yield from in_pickle(name, content)
        else:
            yield from in_text(name, content)


def refuse(found: Iterable[Secret]) -> None:
    """Refuse to write what has secrets in it.

    Raises:
        RequestInvalidError: there are any; the message says where.
    """
    secrets = sorted(set(found), key=lambda one: (one.place, one.line))
    if not secrets:
        return
    shown = "; ".join(map(str, secrets[:_MOST_SHOWN]))
    more = f" and {len(secrets) - _MOST_SHOWN} more" if len(secrets) > _MOST_SHOWN else ""
    message = (
        f"what would be written into the model looks like secrets: {shown}{more}. Whoever has the "
        "model has them. Read them from the environment when the model runs; if they are none, "
        "`allow_secrets=True` (`--allow-secrets`)"
    )
    raise RequestInvalidError(message, secrets=len(secrets))


def _known(content: bytes) -> Iterator[tuple[str, int]]:
    for kind, pattern in _PATTERNS.items():
        for found in pattern.finditer(content):
            yield kind, found.start()


def _assigned(content: bytes) -> Iterator[tuple[str, int]]:
    for found in _ASSIGNED.finditer(content):
        if not _NONE.match(found["value"]) and not _NO_SECRET_NAMES.match(found["name"]):
            yield f"`{found['name'].decode(errors='replace')}` and a text", found.start()
