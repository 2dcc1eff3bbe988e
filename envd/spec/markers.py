"""When a requirement applies: the environment markers of a Python (PEP 508)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from packaging.markers import Marker

from envd.spec.python import Python

if TYPE_CHECKING:  # it asks here whether its markers can be evaluated
    from envd.spec.requirement import Requirement

_ANY = Python("cpython", "3.11.0", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")


def environment(python: Python) -> dict[str, str]:
    """Return the values that markers have on *python*."""
    system, _, machine = python.platform.partition("-")
    return {
        "extra": "",
        "implementation_name": python.implementation,
        "implementation_version": python.version,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_release": "",
        "platform_system": system.capitalize(),
        "platform_version": "",
        "platform_python_implementation": "CPython",
        "python_full_version": python.version,
        "python_version": python.minor,
        "sys_platform": system,
    }


@lru_cache(1024)
def applies(marker: str, python: Python) -> bool:
    """Whether *marker* holds on *python*; an empty one always does."""
    return not marker or Marker(marker).evaluate(environment(python))


def must_evaluate(marker: str) -> None:
    """Evaluate *marker* as `applies` will, to know that it can be.

    Whether it can hangs on what is compared how, and not on the Python.

    Raises:
        ValueError: it is not one, or compares what cannot be compared.
        RecursionError: it is nested too deep.
    """
    try:
        applies(marker, _ANY)
    except KeyError as error:
        message = f"{error} means something in a lock only"
        raise ValueError(message) from error


def unmet(
    asked: Iterable[Requirement], packages: Iterable[Requirement], python: Python
) -> list[Requirement]:
    """Return those of *asked* that no version among the pinned *packages* satisfies."""
    pins = {one.name: one.pin for one in packages}
    return [
        one
        for one in asked
        if one.name
        and applies(one.marker, python)
        and (one.name not in pins or not _allows(one, pins[one.name]))
    ]


def _allows(one: Requirement, version: str | None) -> bool:
    return version is None or one.specifier.contains(version, prereleases=True)
