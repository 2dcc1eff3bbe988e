"""Which distribution a module is known to come from.

A distribution is never guessed from a module's name: whoever owns that name on the index
would be trusted. MLflow's own hint is that guess (`extra_pip_requirements=["bs4==..."]`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("modules.txt")
_UNSURE = "?"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a module comes from.

    The `distribution` is None where nothing is known, and where which of the `others` is meant
    cannot be. Else the `others` bring the same module, and are not what is usually meant.
    """

    module: str
    distribution: str | None = None
    others: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Every distribution that is known to bring the module."""
        return (*([self.distribution] if self.distribution else []), *self.others)


def origin_of(module: str) -> Origin:
    """Return where *module*, of any depth, comes from: what is known of it or of its package."""
    known = _known()
    return next((known[one] for one in _packages(module) if one in known), Origin(module))


def distribution_of(module: str) -> str | None:
    """Return the distribution that *module* is known to come from, or None."""
    return origin_of(module).distribution


def _packages(module: str) -> Iterator[str]:
    """Yield *module*, the package it lies in, and so on."""
    while module:
        yield module
        module = module.rpartition(".")[0]


@cache
def _known() -> dict[str, Origin]:
    lines = (one.split() for one in _TABLE.read_text().splitlines() if one[:1] not in {"", "#"})
    return {one.module: one for one in (_origin(*line) for line in lines)}


def _origin(module: str, *distributions: str) -> Origin:
    if module.startswith(_UNSURE):
        return Origin(module.removeprefix(_UNSURE), None, distributions)
    return Origin(module, distributions[0], distributions[1:])
