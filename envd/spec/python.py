"""The identity of a Python: what decides which packages fit it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

# Bounded: `int` refuses a text of 5,000 digits, which a model may well hold.
_VERSION = re.compile(r"(?<!\d)\d{1,9}(?:\.\d{1,9}){0,2}(?!\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Python:
    """One implementation, version, ABI and platform. Where it lies is not part of it."""

    implementation: str
    version: str
    abi: str
    platform: str
    libc: str

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers, `(3, 11, 7)`."""
        return release(self.version)

    @property
    def minor(self) -> str:
        """The version's first two numbers, `3.11`."""
        return ".".join(self.version.split(".")[:2])

    def document(self) -> dict[str, str]:
        """Return the identity as JSON values."""
        return asdict(self)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers that *version* begins with."""
    found = _VERSION.match(version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def first_version(text: str) -> str | None:
    """Return the first version that stands in *text*, as in `>=3.7,<3.9` or `=3.7.*`.

    MLflow drops the operator in the same way (`_PythonEnv.get_dependencies_from_conda_yaml`).
    """
    found = _VERSION.search(text)
    return found[0] if found else None
