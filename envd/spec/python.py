"""The identity of a Python: what decides which packages fit it."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import asdict, dataclass
from typing import NamedTuple

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


_HERE = f"{sys.platform}-{platform.machine()}"


class _Called(NamedTuple):
    """How others call what `Python.platform` says; uv does not know all of them."""

    conda: str
    uv: str | None


# conda/base/constants.py, KNOWN_SUBDIRS; `uv pip compile --python-platform`. As old a system as
# conda-forge's own packages run on.
_PLATFORMS = {
    "linux-x86_64": _Called("linux-64", "x86_64-manylinux_2_28"),
    "linux-aarch64": _Called("linux-aarch64", "aarch64-manylinux_2_28"),
    "linux-ppc64le": _Called("linux-ppc64le", None),
    "darwin-x86_64": _Called("osx-64", "x86_64-apple-darwin"),
    "darwin-arm64": _Called("osx-arm64", "aarch64-apple-darwin"),
    "win32-AMD64": _Called("win-64", "x86_64-pc-windows-msvc"),
}


def python_of_conda(version: str) -> Python:
    """Return the Python *version* as a conda environment on this machine has it.

    Without all of the version, what is known before the packages are chosen.
    """
    numbers = release(version)
    # Until 3.7 the ABI said that memory came from pymalloc.
    flags = "m" if numbers < (3, 8) else ""
    minor = "".join(map(str, numbers[:2]))
    abi = f"cpython-{minor}{flags}-{platform.machine()}-linux-gnu" if len(numbers) > 1 else ""
    return Python("cpython", version, abi, _HERE, "-".join(platform.libc_ver()))


def conda_subdir(python: Python) -> str:
    """Return what conda calls the platform of *python*: `linux-64`."""
    found = _PLATFORMS.get(python.platform)
    return found.conda if found else python.platform


def uv_platform(python: Python) -> str | None:
    """Return what uv calls the platform of *python*, None where it knows no such platform."""
    found = _PLATFORMS.get(python.platform)
    return found.uv if found else None


def elsewhere(python: Python, subdir: str) -> Python:
    """Return *python* as it is on another platform, which conda calls *subdir*.

    Raises:
        KeyError: there is no such platform.
    """
    found = next((name for name, called in _PLATFORMS.items() if called.conda == subdir), None)
    if found is None:
        raise KeyError(subdir)
    abi = "-".join(python.abi.split("-")[:2])
    return Python(python.implementation, python.version, abi, found, "")


def is_here(python: Python) -> bool:
    """Whether *python* is for this machine's platform."""
    return python.platform == _HERE


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
